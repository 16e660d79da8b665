/* Passes over the images of a convolution's neurons; see images.py. Arrays are B x M x P, for B samples, M neurons and P
 * positions; what is summed or scaled has one number a neuron. */

#include "common.h"

typedef struct {
    long B, M, P, threads;
    REAL a; /* slope of the activation below zero */
} Shape;

/* Every plane (sample, neuron): its neuron j, and the place `at` of its first number. Neurons go to threads whole. */
#define PLANES(shape) \
    SHARED(shape->threads) \
    for (long j = 0; j < shape->M; j++) \
        for (long at = j * shape->P; at < shape->B * shape->M * shape->P; at += shape->M * shape->P)

/* E = (s(Z) - T) s'(Z), f += ||s(Z) - T||^2. */
void KERNEL(residual)(const Shape *shape, const REAL *Z, const REAL *T, REAL *E, REAL *f)
{
    const long P = shape->P;
    const REAL a = shape->a;
    PLANES(shape)
    {
        REAL sum = 0;
        EACH(i, P) {
            const REAL z = Z[at + i], e = value(z, a) - T[at + i];
            sum += e * e;
            E[at + i] = e * slope(z, a);
        }
        f[j] += sum;
    }
}

/* KD = beta KD - KG, curvature += ||s'(Z) KD||^2. */
void KERNEL(redirect)(const Shape *shape, const REAL *Z, const REAL *KG, const REAL *beta, REAL *KD, REAL *curvature)
{
    const long P = shape->P;
    const REAL a = shape->a;
    PLANES(shape)
    {
        const REAL b = beta[j];
        REAL sum = 0;
        EACH(i, P) {
            const REAL d = b * KD[at + i] - KG[at + i], sd = slope(Z[at + i], a) * d;
            KD[at + i] = d;
            sum += sd * sd;
        }
        curvature[j] += sum;
    }
}

/* f += ||s(Z + t KD) - T||^2. */
void KERNEL(attempt)(const Shape *shape, const REAL *Z, const REAL *T, const REAL *KD, const REAL *t, REAL *f)
{
    const long P = shape->P;
    const REAL a = shape->a;
    PLANES(shape)
    {
        const REAL step = t[j];
        REAL sum = 0;
        EACH(i, P) {
            const REAL e = value(Z[at + i] + step * KD[at + i], a) - T[at + i];
            sum += e * e;
        }
        f[j] += sum;
    }
}

/* Z += t KD, and E there. */
void KERNEL(move)(const Shape *shape, REAL *Z, const REAL *T, const REAL *KD, const REAL *t, REAL *E)
{
    const long P = shape->P;
    const REAL a = shape->a;
    PLANES(shape)
    {
        const REAL step = t[j];
        EACH(i, P) {
            const REAL z = step != 0 ? Z[at + i] + step * KD[at + i] : Z[at + i]; /* KD may be infinite */
            Z[at + i] = z;
            E[at + i] = (value(z, a) - T[at + i]) * slope(z, a);
        }
    }
}
