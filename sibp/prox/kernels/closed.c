/* The closed form of sibp.prox.solvers.linear in the layer's precision: Gram matrices by half their products, and
 * inverses of small ones. */
#include <math.h>

#include "common.h"

#define STRETCH 1024 /* columns of A at a time: the rows of two tiles then stay in the nearest cache */
#define TILE 16

static inline Vector load_part(const REAL *from, long count)
{
    Vector v = {0};
    memcpy(&v, from, count * sizeof(REAL));
    return v;
}

/* K[i..i+3, j..j+3] += A[i..i+3] A[j..j+3]' over some columns. In the place of rows past the last, the last is read. */
static void add_tile(const REAL *A, REAL *K, long N, long n, long i, long j, long first, long columns)
{
    const REAL *left[SIDE], *right[SIDE];
    for (long p = 0; p < SIDE; p++) {
        left[p] = A + least(i + p, N - 1) * n + first;
        right[p] = A + least(j + p, N - 1) * n + first;
    }
    Vector sums[SIDE][SIDE] = {0};
    const long whole = columns / LANES * LANES;
    for (long c = 0; c < whole; c += LANES) {
        Vector a[SIDE];
        for (long p = 0; p < SIDE; p++) a[p] = load(left[p] + c);
        for (long q = 0; q < SIDE; q++) {
            const Vector b = load(right[q] + c);
            for (long p = 0; p < SIDE; p++) sums[p][q] += a[p] * b;
        }
    }
    if (whole < columns) {
        Vector a[SIDE];
        for (long p = 0; p < SIDE; p++) a[p] = load_part(left[p] + whole, columns - whole);
        for (long q = 0; q < SIDE; q++) {
            const Vector b = load_part(right[q] + whole, columns - whole);
            for (long p = 0; p < SIDE; p++) sums[p][q] += a[p] * b;
        }
    }
    for (long p = 0; p < SIDE && i + p < N; p++)
        for (long q = 0; q < SIDE && j + q < N; q++) {
            REAL sum = 0;
            for (long l = 0; l < LANES; l++) sum += sums[p][q][l];
            K[(i + p) * N + j + q] += sum;
        }
}

/* The upper triangle from the lower, by square tiles: both then stay in the nearest cache. */
static void mirror(REAL *K, long N)
{
    for (long i = 0; i < N; i += TILE)
        for (long j = 0; j <= i; j += TILE)
            for (long q = j; q < least(j + TILE, N); q++)
                for (long p = i > q + 1 ? i : q + 1; p < least(i + TILE, N); p++) K[q * N + p] = K[p * N + q];
}

/* K = A A^T + plus, N x N, for A of N rows and n columns. */
void KERNEL(outer_gram)(const REAL *A, REAL *K, long N, long n, double plus, long threads)
{
    SHARED(threads)
    for (long strip = 0; strip < (N + SIDE - 1) / SIDE; strip++) {
        const long i = strip * SIDE, end = least(i + SIDE, N);
        for (long p = i; p < end; p++)
            for (long q = 0; q < end; q++) K[p * N + q] = (REAL)plus;
        for (long first = 0; first < n; first += STRETCH)
            for (long j = 0; j <= i; j += SIDE) add_tile(A, K, N, n, i, j, first, least(STRETCH, n - first));
    }
    mirror(K, N);
}

/* B = its own inverse, one pivot after another (Gauss-Jordan); 0 if a pivot is not positive. */
static int invert_block(double B[SIDE][SIDE], long size)
{
    for (long q = 0; q < size; q++) {
        if (!(B[q][q] > 0)) return 0;
        const double inverse = 1 / B[q][q];
        for (long p = 0; p < size; p++) {
            if (p == q) continue;
            const double factor = B[p][q] * inverse;
            for (long s = 0; s < size; s++) B[p][s] = s == q ? -factor : B[p][s] - factor * B[q][s];
        }
        for (long s = 0; s < size; s++) B[q][s] = s == q ? inverse : B[q][s] * inverse;
    }
    return 1;
}

/* The lower triangle of M becomes that of -M^-1; 0 if M is not positive definite. rows: 2 SIDE N numbers.
 *
 * The sweep operator (Goodnight 1979, "A tutorial on the SWEEP operator") with blocks of four pivots: with P the pivots,
 * M_ij -= M_iP M_PP^-1 M_Pj, M_iP = M_iP M_PP^-1, M_PP = -M_PP^-1. */
static int sweep(double *M, long N, double *memory)
{
    double *rows[SIDE], *scaled[SIDE]; /* M_Pj, and M_PP^-1 M_Pj */
    for (long q = 0; q < SIDE; q++) {
        rows[q] = memory + q * N;
        scaled[q] = memory + (SIDE + q) * N;
    }
    for (long k = 0; k < N; k += SIDE) {
        const long size = least(SIDE, N - k);
        double B[SIDE][SIDE] = {{0}};
        for (long q = 0; q < SIDE; q++) {
            const long row = k + q;
            if (q >= size) {
                memset(rows[q], 0, N * sizeof(double));
                continue;
            }
            memcpy(rows[q], M + row * N, (row + 1) * sizeof(double));
            for (long j = row + 1; j < N; j++) rows[q][j] = M[j * N + row];
            for (long p = 0; p < size; p++) B[q][p] = rows[q][k + p];
        }
        if (!invert_block(B, size)) return 0;
        const double *restrict r0 = rows[0], *restrict r1 = rows[1], *restrict r2 = rows[2], *restrict r3 = rows[3];
        for (long q = 0; q < SIDE; q++) {
            double *restrict to = scaled[q];
            const double b0 = B[q][0], b1 = B[q][1], b2 = B[q][2], b3 = B[q][3];
            for (long j = 0; j < N; j++) to[j] = b0 * r0[j] + b1 * r1[j] + b2 * r2[j] + b3 * r3[j];
        }
        for (long i = 0; i < N; i++) {
            double *restrict to = M + i * N;
            const double s0 = scaled[0][i], s1 = scaled[1][i], s2 = scaled[2][i], s3 = scaled[3][i];
            for (long j = 0; j <= i; j++) to[j] -= s0 * r0[j] + s1 * r1[j] + s2 * r2[j] + s3 * r3[j];
        }
        for (long q = 0; q < size; q++) {
            memcpy(M + (k + q) * N, scaled[q], k * sizeof(double));
            for (long p = 0; p <= q; p++) M[(k + q) * N + k + p] = -B[q][p];
            for (long i = k + size; i < N; i++) M[i * N + k + q] = scaled[q][i];
        }
    }
    return 1;
}

enum { INVERTED, INDEFINITE, UNRESOLVED };

/* inverse = -(G + lam I)^-1, r x r, worked out in double precision, if lam >= resolved ||G||_F; what happened.
 * norm = ||G||_F. work: r (r + 2 SIDE) numbers. */
int KERNEL(minus_inverse)(
    const REAL *G, REAL *inverse, long r, double lam, double resolved, double *work, double *norm)
{
    double squares = 0;
    SUMS(i, r * r, squares) squares += (double)G[i] * G[i];
    *norm = sqrt(squares);
    if (!(lam >= resolved * *norm)) return UNRESOLVED;
    EACH(i, r * r) work[i] = G[i];
    for (long i = 0; i < r; i++) work[i * r + i] += lam;
    if (!sweep(work, r, work + r * r)) return INDEFINITE;
    EACH(i, r * r) inverse[i] = (REAL)work[i];
    mirror(inverse, r);
    return INVERTED;
}
