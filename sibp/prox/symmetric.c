/* Gram matrices and inverses of small symmetric matrices; see symmetric.py. REAL is float or double. */
#include "common.h"

#define STRETCH 1024 /* columns of A at a time: the rows of two tiles then stay in the nearest cache */
#define TILE 16

/* K[i..i+3, j..j+3] += A[i..i+3] A[j..j+3]' over some columns. In the place of rows past the last, the last is read. */
static void add_tile(const REAL *A, REAL *K, long N, long n, long i, long j, long first, long columns)
{
    const REAL *left[SIDE], *right[SIDE];
    for (long p = 0; p < SIDE; p++) {
        left[p] = A + least(i + p, N - 1) * n + first;
        right[p] = A + least(j + p, N - 1) * n + first;
    }
    Vector sums[SIDE][SIDE] = {0};
    for (long c = 0; c < columns; c += LANES) {
        Vector a[SIDE];
        for (long p = 0; p < SIDE; p++) a[p] = load(left[p] + c);
        for (long q = 0; q < SIDE; q++) {
            const Vector b = load(right[q] + c);
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

/* K = A A' + plus, N x N, for A of N rows and n columns, n a multiple of LANES. */
void gram(const REAL *A, REAL *K, long N, long n, REAL plus, long threads)
{
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic, 1)
    for (long strip = (N - 1) / SIDE; strip >= 0; strip--) { /* the longest first */
        const long i = strip * SIDE, end = least(i + SIDE, N);
        for (long p = i; p < end; p++)
            for (long q = 0; q < end; q++) K[p * N + q] = plus;
        for (long first = 0; first < n; first += STRETCH)
            for (long j = 0; j <= i; j += SIDE) add_tile(A, K, N, n, i, j, first, least(STRETCH, n - first));
    }
    mirror(K, N);
}

/* Largest sum of absolute values in a row of K. */
REAL row_sum_norm(const REAL *K, long N)
{
    REAL norm = 0;
    for (long i = 0; i < N; i++) {
        REAL sum = 0;
        for (long j = 0; j < N; j++) sum += __builtin_fabs(K[i * N + j]);
        norm = norm >= sum || norm != norm ? norm : sum; /* NaN stays */
    }
    return norm;
}

/* B = its own inverse, one pivot after another (Gauss-Jordan); 0 if a pivot is not positive. */
static int invert_block(REAL B[SIDE][SIDE], long size)
{
    for (long q = 0; q < size; q++) {
        if (!(B[q][q] > 0)) return 0;
        const REAL inverse = 1 / B[q][q];
        for (long p = 0; p < size; p++) {
            if (p == q) continue;
            const REAL factor = B[p][q] * inverse;
            for (long s = 0; s < size; s++) B[p][s] = s == q ? -factor : B[p][s] - factor * B[q][s];
        }
        for (long s = 0; s < size; s++) B[q][s] = s == q ? inverse : B[q][s] * inverse;
    }
    return 1;
}

/* M = -(K + damping I)^-1; 0 if that matrix is not positive definite in this precision. work: 2 SIDE N numbers.

   The sweep operator (Goodnight 1979, "A tutorial on the SWEEP operator") on the lower triangle, with blocks of four
   pivots: with P the pivots, M_ij -= M_iP M_PP^-1 M_Pj, M_iP = M_iP M_PP^-1, M_PP = -M_PP^-1. */
int minus_inverse(const REAL *K, REAL *M, long N, REAL damping, REAL *work)
{
    REAL *rows[SIDE], *scaled[SIDE]; /* M_Pj, and M_PP^-1 M_Pj */
    for (long q = 0; q < SIDE; q++) {
        rows[q] = work + q * N;
        scaled[q] = work + (SIDE + q) * N;
    }
    memcpy(M, K, N * N * sizeof(REAL));
    for (long i = 0; i < N; i++) M[i * N + i] += damping;
    for (long k = 0; k < N; k += SIDE) {
        const long size = least(SIDE, N - k);
        REAL B[SIDE][SIDE] = {{0}};
        for (long q = 0; q < SIDE; q++) {
            const long row = k + q;
            if (q >= size) {
                memset(rows[q], 0, N * sizeof(REAL));
                continue;
            }
            memcpy(rows[q], M + row * N, (row + 1) * sizeof(REAL));
            for (long j = row + 1; j < N; j++) rows[q][j] = M[j * N + row];
            for (long p = 0; p < size; p++) B[q][p] = rows[q][k + p];
        }
        if (!invert_block(B, size)) return 0;
        const REAL *restrict r0 = rows[0], *restrict r1 = rows[1], *restrict r2 = rows[2], *restrict r3 = rows[3];
        for (long q = 0; q < SIDE; q++) {
            REAL *restrict to = scaled[q];
            const REAL b0 = B[q][0], b1 = B[q][1], b2 = B[q][2], b3 = B[q][3];
            for (long j = 0; j < N; j++) to[j] = b0 * r0[j] + b1 * r1[j] + b2 * r2[j] + b3 * r3[j];
        }
        for (long i = 0; i < N; i++) {
            REAL *restrict to = M + i * N;
            const REAL s0 = scaled[0][i], s1 = scaled[1][i], s2 = scaled[2][i], s3 = scaled[3][i];
            for (long j = 0; j <= i; j++) to[j] -= s0 * r0[j] + s1 * r1[j] + s2 * r2[j] + s3 * r3[j];
        }
        for (long q = 0; q < size; q++) {
            memcpy(M + (k + q) * N, scaled[q], k * sizeof(REAL));
            for (long p = 0; p <= q; p++) M[(k + q) * N + k + p] = -B[q][p];
            for (long i = k + size; i < N; i++) M[i * N + k + q] = scaled[q][i];
        }
    }
    mirror(M, N);
    return 1;
}

/* X = M R, for M (N x N) and R (N x m), N >= SIDE, m >= LANES. The last rows and columns of a strip are computed with the
   ones before, once more, where fewer than a tile are left. */
void times(const REAL *M, const REAL *R, REAL *X, long N, long m, long threads)
{
    const long strip = WIDE * LANES, even = (m / strip + threads) / threads * strip;
    const long share = m % even && m % even < LANES ? m : even; /* no thread writes where another does */
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
    for (long thread = 0; thread < threads; thread++) {
        const long end = least((thread + 1) * share, m);
        for (long c = thread * share; c < end; c += strip) {
            const long left = end - c, from = left < LANES ? end - LANES : c;
            const long vectors = left < LANES ? 1 : least(WIDE, left / LANES);
            for (long i = 0; i < N; i += SIDE) {
                const long row = least(i, N - SIDE);
                tile(M + row * N, N, R + from, m, N, 0, 0, X + row * m + from, vectors);
            }
            if (left >= LANES && left < strip && left % LANES) /* what fills no vector, from the right */
                for (long i = 0; i < N; i += SIDE) {
                    const long row = least(i, N - SIDE);
                    tile(M + row * N, N, R + end - LANES, m, N, 0, 0, X + row * m + end - LANES, 1);
                }
        }
    }
}
