/* Passes over the images of a convolution's neurons; see images.py. Arrays are B x M x P, for B samples, M neurons and P
 * positions; what is summed or scaled has one number a neuron. */

#include "activations.h"

typedef struct {
    long B, M, P, threads, kind; /* the last of the activation */
    REAL a;                      /* slope of PIECES below zero */
} Shape;
#define INLINE static inline __attribute__((always_inline)) void

/* Every plane (sample, neuron): its neuron j, and the place `first` of its first number. Neurons go to threads whole. */
#define PLANES(shape) \
    SHARED(shape->threads) \
    for (long j = 0; j < shape->M; j++) \
        for (long first = j * shape->P; first < shape->B * shape->M * shape->P; first += shape->M * shape->P)

INLINE residual(const Shape *shape, const REAL *Z, const REAL *T, REAL *E, REAL *f, const int kind)
{
    const long P = shape->P;
    const REAL a = shape->a;
    PLANES(shape)
    {
        REAL sum = 0;
        SUMS(i, P, sum) {
            const Point s = at(Z[first + i], a, kind);
            const REAL e = s.value - T[first + i];
            sum += e * e;
            E[first + i] = e * s.slope;
        }
        f[j] += sum;
    }
}

/* E = (s(Z) - T) s'(Z), f += ||s(Z) - T||^2. */
void KERNEL(residual)(const Shape *shape, const REAL *Z, const REAL *T, REAL *E, REAL *f)
{
#define CALL(kind) residual(shape, Z, T, E, f, kind)
    BY_KIND(shape->kind, CALL)
#undef CALL
}

INLINE redirect(
    const Shape *shape, const REAL *Z, const REAL *KG, const REAL *beta, REAL *KD, REAL *curvature, const int kind)
{
    const long P = shape->P;
    const REAL a = shape->a;
    PLANES(shape)
    {
        const REAL b = beta[j];
        REAL sum = 0;
        SUMS(i, P, sum) {
            const REAL d = b * KD[first + i] - KG[first + i], sd = at(Z[first + i], a, kind).slope * d;
            KD[first + i] = d;
            sum += sd * sd;
        }
        curvature[j] += sum;
    }
}

/* KD = beta KD - KG, curvature += ||s'(Z) KD||^2. */
void KERNEL(redirect)(const Shape *shape, const REAL *Z, const REAL *KG, const REAL *beta, REAL *KD, REAL *curvature)
{
#define CALL(kind) redirect(shape, Z, KG, beta, KD, curvature, kind)
    BY_KIND(shape->kind, CALL)
#undef CALL
}

INLINE attempt(
    const Shape *shape, const REAL *Z, const REAL *T, const REAL *KD, const REAL *t, REAL *f, const int kind)
{
    const long P = shape->P;
    const REAL a = shape->a;
    PLANES(shape)
    {
        const REAL step = t[j];
        REAL sum = 0;
        SUMS(i, P, sum) {
            const REAL e = at(Z[first + i] + step * KD[first + i], a, kind).value - T[first + i];
            sum += e * e;
        }
        f[j] += sum;
    }
}

/* f += ||s(Z + t KD) - T||^2. */
void KERNEL(attempt)(const Shape *shape, const REAL *Z, const REAL *T, const REAL *KD, const REAL *t, REAL *f)
{
#define CALL(kind) attempt(shape, Z, T, KD, t, f, kind)
    BY_KIND(shape->kind, CALL)
#undef CALL
}

INLINE move(const Shape *shape, REAL *Z, const REAL *T, const REAL *KD, const REAL *t, REAL *E, const int kind)
{
    const long P = shape->P;
    const REAL a = shape->a;
    PLANES(shape)
    {
        const REAL step = t[j];
        EACH(i, P) {
            const REAL z = step != 0 ? Z[first + i] + step * KD[first + i] : Z[first + i]; /* KD may be infinite */
            const Point s = at(z, a, kind);
            Z[first + i] = z;
            E[first + i] = (s.value - T[first + i]) * s.slope;
        }
    }
}

/* Z += t KD, and E there. */
void KERNEL(move)(const Shape *shape, REAL *Z, const REAL *T, const REAL *KD, const REAL *t, REAL *E)
{
#define CALL(kind) move(shape, Z, T, KD, t, E, kind)
    BY_KIND(shape->kind, CALL)
#undef CALL
}

/* value = s(Z), slope = s'(Z), for whoever wants to look at them: B M P numbers. */
void KERNEL(points)(const Shape *shape, const REAL *Z, REAL *value, REAL *slope)
{
#define CALL(kind) \
    EACH(i, shape->B * shape->M * shape->P) { \
        const Point s = at(Z[i], shape->a, kind); \
        value[i] = s.value; \
        slope[i] = s.slope; \
    }
    BY_KIND(shape->kind, CALL)
#undef CALL
}
