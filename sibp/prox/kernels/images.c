/* Passes over the images of a convolution's neurons; see images.py. Arrays are B x M x P, for B samples, M neurons and P
 * positions; what is summed or scaled has one number a neuron. */

#include "activations.h"

typedef struct {
    long B, M, P, threads, kind; /* the last of the activation */
    REAL a;                      /* slope of PIECES below zero */
} Shape;
#define INLINE static inline __attribute__((always_inline)) void

/* Every plane of a neuron j, one a sample: the place `first` of its first number. */
#define PLANES(shape, j) \
    for (long first = (j) * shape->P; first < shape->B * shape->M * shape->P; first += shape->M * shape->P)

/* `call` for every neuron j, with the kind as a constant. The choice of the kind stands inside of what is shared among
 * threads: a compiler makes one function of that, to which a constant from outside would be a variable. */
#define NEURONS(shape, call) \
    SHARED(shape->threads) \
    for (long j = 0; j < shape->M; j++) { BY_KIND(shape->kind, call) }

INLINE residual(const Shape *shape, long j, const REAL *Z, const REAL *T, REAL *E, REAL *f, const int kind)
{
    const long P = shape->P;
    const REAL a = shape->a;
    PLANES(shape, j) {
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
#define CALL(kind) residual(shape, j, Z, T, E, f, kind)
    NEURONS(shape, CALL)
#undef CALL
}

INLINE redirect(
    const Shape *shape, long j, const REAL *Z, const REAL *KG, const REAL *beta, REAL *KD, REAL *curvature,
    const int kind)
{
    const long P = shape->P;
    const REAL a = shape->a, b = beta[j];
    PLANES(shape, j) {
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
#define CALL(kind) redirect(shape, j, Z, KG, beta, KD, curvature, kind)
    NEURONS(shape, CALL)
#undef CALL
}

INLINE attempt(
    const Shape *shape, long j, const REAL *Z, const REAL *T, const REAL *KD, const REAL *t, REAL *f, const int kind)
{
    const long P = shape->P;
    const REAL a = shape->a, step = t[j];
    PLANES(shape, j) {
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
#define CALL(kind) attempt(shape, j, Z, T, KD, t, f, kind)
    NEURONS(shape, CALL)
#undef CALL
}

INLINE move(const Shape *shape, long j, REAL *Z, const REAL *T, const REAL *KD, const REAL *t, REAL *E, const int kind)
{
    const long P = shape->P;
    const REAL a = shape->a, step = t[j];
    PLANES(shape, j) EACH(i, P) {
        const REAL z = step != 0 ? Z[first + i] + step * KD[first + i] : Z[first + i]; /* KD may be infinite */
        const Point s = at(z, a, kind);
        Z[first + i] = z;
        E[first + i] = (s.value - T[first + i]) * s.slope;
    }
}

/* Z += t KD, and E there. */
void KERNEL(move)(const Shape *shape, REAL *Z, const REAL *T, const REAL *KD, const REAL *t, REAL *E)
{
#define CALL(kind) move(shape, j, Z, T, KD, t, E, kind)
    NEURONS(shape, CALL)
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

/* How many of n numbers are not 0. */
long KERNEL(nonzeros)(const REAL *x, long n)
{
    long found = 0;
    for (long first = 0; first < n; first += 4096) { /* few enough for an int to count, which vectors hold more of */
        const long end = least(first + 4096, n);
        int some = 0;
        SUMS(i, end - first, some) some += x[first + i] != 0;
        found += some;
    }
    return found;
}
