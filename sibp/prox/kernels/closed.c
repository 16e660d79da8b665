/* The closed form of sibp.prox.solvers.linear in the layer's precision: Gram matrices from one of their triangles, and the
 * solution of (G + lam I) X = -R by a Cholesky factor. */
#include <math.h>
#include <stdint.h>

#include "sums.h"
#include "transpose.h"

#define STRETCH 800 /* columns of A at a time: two strips of rows, and one to multiply them with, stay in the L1 cache */
#define STRIPS 2
#define ACROSS (BYTES == 64 ? SIDE : SIDE / 2) /* there are 32 registers of 64 bytes, but 16 shorter ones */
#define TILE 16
#define LINE 64 /* bytes */
#define PANEL (WIDE * LANES) /* columns in a panel */

/* K[i..i+3, j..j+3] += A[i..i+3] A[j..j+3]^T over some columns, whole vectors; rows of A are `row` apart. Rows past
 * the last one are replaced by it. ACROSS of the four columns at a time: their sums fit into the processor's registers. */
static void add_tile(const REAL *A, long row, REAL *K, long N, long i, long j, long columns)
{
    const REAL *left[SIDE];
    for (long p = 0; p < SIDE; p++) left[p] = A + least(i + p, N - 1) * row;
    for (long first = 0; first < SIDE; first += ACROSS) {
        const REAL *right[ACROSS];
        for (long q = 0; q < ACROSS; q++) right[q] = A + least(j + first + q, N - 1) * row;
        Vector sums[SIDE][ACROSS] = {0};
        for (long c = 0; c < columns; c += LANES) {
            Vector a[SIDE];
            for (long p = 0; p < SIDE; p++) a[p] = load(left[p] + c);
            for (long q = 0; q < ACROSS; q++) {
                const Vector b = load(right[q] + c);
                for (long p = 0; p < SIDE; p++) sums[p][q] += a[p] * b;
            }
        }
        REAL found[SIDE][ACROSS];
        sums_of(*sums, SIDE * ACROSS, *found);
        for (long p = 0; p < SIDE && i + p < N; p++)
            for (long q = 0; q < ACROSS && j + first + q < N; q++) K[(i + p) * N + j + first + q] += found[p][q];
    }
}

/* Copies the lower triangle to the upper one, by square tiles that stay in the L1 cache. */
void KERNEL(mirror)(REAL *K, long N)
{
    for (long i = 0; i < N; i += TILE)
        for (long j = 0; j <= i; j += TILE)
            for (long q = j; q < least(j + TILE, N); q++)
                for (long p = i > q + 1 ? i : q + 1; p < least(i + TILE, N); p++) K[q * N + p] = K[p * N + q];
}

/* K = A A^T + plus, N x N, for A of N rows and n columns. work: N rows of n numbers padded to LINE bytes, used where the rows
 * of A do not begin at cache lines: a copy costs less than loads across them. */
void KERNEL(outer_gram)(const REAL *A, REAL *K, REAL *work, long N, long n, double plus, long threads)
{
    const long per_line = LINE / sizeof(REAL), row = (n + per_line - 1) / per_line * per_line;
    const long strips = (N + SIDE - 1) / SIDE;
    if (row != n || (uintptr_t)A % LINE) {
        for (long i = 0; i < N; i++) {
            memcpy(work + i * row, A + i * n, n * sizeof(REAL));
            memset(work + i * row + n, 0, (row - n) * sizeof(REAL));
        }
        A = work;
    }
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static, 1)
#endif
    for (long block = 0; block < (strips + STRIPS - 1) / STRIPS; block++) {
        const long begin = block * STRIPS * SIDE, end = least(begin + STRIPS * SIDE, N);
        for (long p = begin; p < end; p++)
            for (long q = 0; q < end; q++) K[p * N + q] = (REAL)plus;
        for (long first = 0; first < row; first += STRETCH)
            for (long j = 0; j < end; j += SIDE)
                for (long i = j > begin ? j : begin; i < end; i += SIDE)
                    add_tile(A + first, row, K, N, i, j, least(STRETCH, row - first));
    }
    KERNEL(mirror)(K, N);
}

/* out = to - left right, SIDE x `vectors` vectors, where left[p, k] is at p * left_p + k * left_k, and rows of right are
 * PANEL apart. */
static inline __attribute__((always_inline)) void subtract(
    const REAL *left, const long left_p, const long left_k, const REAL *right, long inner, const REAL *to, long to_row,
    Vector out[SIDE][WIDE], const int vectors)
{
    for (int p = 0; p < SIDE; p++)
        for (int v = 0; v < vectors; v++) out[p][v] = load(to + p * to_row + v * LANES);
    for (long k = 0; k < inner; k++) {
        Vector b[WIDE];
        for (int v = 0; v < vectors; v++) b[v] = load(right + k * PANEL + v * LANES);
        for (int p = 0; p < SIDE; p++)
            for (int v = 0; v < vectors; v++) out[p][v] -= left[p * left_p + k * left_k] * b[v];
    }
}

/* M[i.., first..] -= M[i.., ..first] memory, for SIDE rows. */
static void subtract_panel(REAL *M, long row, long first, const REAL *memory, long vectors)
{
    REAL *to = M + first;
#define CALL(vectors) \
    { \
        Vector out[SIDE][WIDE]; \
        subtract(M, row, 1, memory, first, to, row, out, vectors); \
        for (int p = 0; p < SIDE; p++) \
            for (int v = 0; v < vectors; v++) store(to + p * row + v * LANES, out[p][v]); \
    }
    BY_WIDTH(vectors, CALL)
#undef CALL
}

/* The Cholesky factor of SIDE x SIDE numbers, with the reciprocals of its diagonal; 0 if a pivot is not positive. */
static int factorize_block(REAL *M, long row)
{
    for (long q = 0; q < SIDE; q++) {
        for (long s = 0; s < q; s++)
            for (long i = q; i < SIDE; i++) M[i * row + q] -= M[i * row + s] * M[q * row + s];
        const REAL pivot = M[q * row + q];
        if (!(pivot > 0 && pivot < INFINITY)) return 0;
        M[q * row + q] = 1 / (REAL)sqrt(pivot);
        for (long i = q + 1; i < SIDE; i++) M[i * row + q] *= M[q * row + q];
    }
    return 1;
}

/* Columns c to c+3 of the factor in some rows of a panel, which begins at M; t: the factor's diagonal block there. */
static inline __attribute__((always_inline)) void solve_columns(REAL *M, long row, const REAL *t, long c, const int rows)
{
    const REAL *t0 = t, *t1 = t0 + row, *t2 = t1 + row, *t3 = t2 + row;
    for (int p = 0; p < rows; p++) {
        REAL *l = M + p * row + c;
        l[0] *= t0[0];
        l[1] = (l[1] - t1[0] * l[0]) * t1[1];
        l[2] = (l[2] - t2[0] * l[0] - t2[1] * l[1]) * t2[2];
        l[3] = (l[3] - t3[0] * l[0] - t3[1] * l[1] - t3[2] * l[2]) * t3[3];
    }
}

/* Subtracts from the later columns what columns c to c+3 contribute, in whole vectors, which subtract 0 from finished columns.
 * memory, PANEL x PANEL: the transpose of the panel's first rows, which form its diagonal block. */
static inline __attribute__((always_inline)) void subtract_columns(
    REAL *M, long row, long c, const REAL *memory, long columns, const int rows)
{
    for (long j = (c + SIDE) / LANES * LANES; j < columns; j += LANES) {
        Vector m[SIDE];
        for (long s = 0; s < SIDE; s++) m[s] = load(memory + (c + s) * PANEL + j);
        for (int p = 0; p < rows; p++) {
            const REAL *l = M + p * row + c;
            Vector here = load(M + p * row + j);
            for (long s = 0; s < SIDE; s++) here -= l[s] * m[s];
            store(M + p * row + j, here);
        }
    }
}

/* The Cholesky factor of a panel's diagonal block; 0 if a pivot is not positive. memory becomes its transpose, with zeros up
 * to the end of each square of SIDE columns. */
static int factorize_panel(REAL *M, long row, long columns, REAL *memory)
{
    memset(memory, 0, PANEL * PANEL * sizeof(REAL));
    for (long c = 0; c < columns; c += SIDE) {
        const REAL *t = M + c * row + c;
        if (!factorize_block(M + c * row + c, row)) return 0;
        for (long i = c + SIDE; i < columns; i++) {
            solve_columns(M + i * row, row, t, c, 1);
            for (long s = 0; s < SIDE; s++) memory[(c + s) * PANEL + i] = M[i * row + c + s];
        }
        for (long i = c + SIDE; i < columns; i++) subtract_columns(M + i * row, row, c, memory, i + 1, 1);
    }
    return 1;
}

/* Overwrites the lower triangle of M (N x N) with its Cholesky factor, with reciprocals on the diagonal; 0 if M is not
 * positive definite. N is a multiple of SIDE, rows are `row` apart. The upper triangle may be overwritten. memory: PANEL
 * numbers for each row, and for at least PANEL rows. */
static int factorize(REAL *M, long N, long row, REAL *memory, long threads)
{
    for (long first = 0; first < N; first += PANEL) { /* left-looking, by panels of columns */
        const long end = least(first + PANEL, N), vectors = (end - first + LANES - 1) / LANES;
        if (first) {
            if (end - first < PANEL) memset(memory, 0, first * PANEL * sizeof(REAL));
            SHARED(threads)
            for (long k = 0; k < first; k += PANEL)
                transpose(M + first * row + k, row, end - first, PANEL, memory + k * PANEL, PANEL);
            SHARED(threads)
            for (long i = first; i < N; i += SIDE) subtract_panel(M + i * row, row, first, memory, vectors);
        }
        REAL *top = M + first * row + first;
        if (!factorize_panel(top, row, end - first, memory)) return 0;
        SHARED(threads)
        for (long i = end - first; i < N - first; i += SIDE)
            for (long c = 0; c < PANEL; c += SIDE) {
                solve_columns(top + i * row, row, top + c * row + c, c, SIDE);
                subtract_columns(top + i * row, row, c, memory, PANEL, SIDE);
            }
    }
    return 1;
}

/* One step of L^-1 Y: SIDE rows of Y (PANEL apart), from those before them. */
static inline __attribute__((always_inline)) void forward_of(
    const REAL *L, long row, long i, REAL *Y, const int vectors)
{
    Vector y[SIDE][WIDE];
    const REAL *t = L + i * row + i;
    subtract(L + i * row, row, 1, Y, i, Y + i * PANEL, PANEL, y, vectors);
    for (int p = 0; p < SIDE; p++)
        for (int v = 0; v < vectors; v++) {
            for (int s = 0; s < p; s++) y[p][v] -= t[p * row + s] * y[s][v];
            y[p][v] *= t[p * row + p];
            store(Y + (i + p) * PANEL + v * LANES, y[p][v]);
        }
}

/* One step of L^-T Y: SIDE rows of Y, from those after them. */
static inline __attribute__((always_inline)) void back_of(
    const REAL *L, long N, long row, long i, REAL *Y, const int vectors)
{
    Vector y[SIDE][WIDE];
    const REAL *t = L + i * row + i;
    const long next = i + SIDE;
    subtract(L + next * row + i, 1, row, Y + next * PANEL, N - next, Y + i * PANEL, PANEL, y, vectors);
    for (int p = SIDE - 1; p >= 0; p--)
        for (int v = 0; v < vectors; v++) {
            for (int s = p + 1; s < SIDE; s++) y[p][v] -= t[s * row + p] * y[s][v];
            y[p][v] *= t[p * row + p];
            store(Y + (i + p) * PANEL + v * LANES, y[p][v]);
        }
}

/* Overwrites Y (N x PANEL) with L^-T L^-1 Y; returns the sum of squares of L^-1 Y. */
static double substitute(const REAL *L, long N, long row, REAL *Y, long vectors)
{
    Vector squares[WIDE] = {0};
    double energy = 0;
#define CALL(vectors) \
    for (long i = 0; i < N; i += SIDE) forward_of(L, row, i, Y, vectors); \
    for (long i = 0; i < N; i++) \
        for (int v = 0; v < vectors; v++) squares[v] += load(Y + i * PANEL + v * LANES) * load(Y + i * PANEL + v * LANES); \
    for (long i = N - SIDE; i >= 0; i -= SIDE) back_of(L, N, row, i, Y, vectors);
    BY_WIDTH(vectors, CALL)
#undef CALL
    REAL sums[WIDE];
    sums_of(squares, WIDE, sums);
    for (long v = 0; v < WIDE; v++) energy += sums[v];
    return energy;
}

/* The padded number of rows, and their padded length, which contains a panel that begins at the last column. */
static long rows_of(long r) { return (r + SIDE - 1) / SIDE * SIDE; }
static long row_of(long r) { return filled_up(rows_of(r)) + PANEL; }

#define PROBES ((long)16)

/* Sums over a solution X. If X is checked, S holds the probes, m x PROBES, and P and Q, rows_of(r) x PROBES, become X S and
 * -R S. Otherwise S is NULL, and only XX is computed. */
struct checks {
    const REAL *S;
    REAL *P, *Q;
    double RR, RX, XX;
};

/* out (rows x PROBES) += Y S, for whole groups of SIDE rows of Y, `row` apart. */
static void add_probes(const REAL *Y, long row, const REAL *S, long rows, long columns, REAL *out)
{
    for (long i = 0; i < rows; i += SIDE)
        for (long v = 0; v < PROBES / LANES; v += WIDE) {
            REAL *to = out + i * PROBES + v * LANES;
            tile(Y + i * row, row, S + v * LANES, PROBES, columns, to, 1, to, least(WIDE, PROBES / LANES - v));
        }
}

/* ||(R + (G + lam I) X) S||^2 from P and Q. */
static double squared_error(const REAL *G, const REAL *P, const REAL *Q, long r, REAL lam)
{
    double sum = 0;
    for (long i = 0; i < r; i += SIDE) {
        const long rows = least(SIDE, r - i);
        REAL e[SIDE * PROBES];
        EACH(q, rows * PROBES) e[q] = lam * P[i * PROBES + q] - Q[i * PROBES + q];
        if (rows == SIDE) add_probes(G + i * r, r, P, SIDE, r, e);
        else
            for (long p = 0; p < rows; p++)
                for (long k = 0; k < r; k++) EACH(q, PROBES) e[p * PROBES + q] += G[(i + p) * r + k] * P[k * PROBES + q];
        for (long q = 0; q < rows * PROBES; q++) sum += (double)e[q] * e[q];
    }
    return sum;
}

long KERNEL(solve_size)(long r, long threads)
{
    return rows_of(r) * (row_of(r) + threads * (PANEL + 2 * PROBES)) + PANEL * PANEL;
}

/* Panels `begin` to `end` of X = -(L L^T)^-1 R, r x m; returns the sum of squares of L^-1 R. checks->S is NULL if X is not
 * to be checked. */
static double solve_panels(
    const REAL *L, const REAL *R, REAL *X, REAL *Y, long r, long m, long begin, long end, struct checks *checks)
{
    double energy = 0;
    memset(Y, 0, rows_of(r) * PANEL * sizeof(REAL));
    for (long first = begin * PANEL; first < least(end * PANEL, m); first += PANEL) {
        const long columns = least(PANEL, m - first), vectors = (columns + LANES - 1) / LANES;
        const REAL *S = checks->S ? checks->S + first * PROBES : NULL;
        for (long i = 0; i < r; i++) {
            for (long j = 0; j < columns; j++) Y[i * PANEL + j] = -R[i * m + first + j];
            for (long j = columns; j < vectors * LANES; j++) Y[i * PANEL + j] = 0;
        }
        if (S) add_probes(Y, PANEL, S, rows_of(r), columns, checks->Q);
        energy += substitute(L, rows_of(r), row_of(r), Y, vectors);
        for (long i = 0; i < r; i++) {
            const REAL *x = Y + i * PANEL;
            REAL XX = 0;
            SUMS(j, columns, XX) XX += x[j] * x[j];
            checks->XX += XX;
            memcpy(X + i * m + first, x, columns * sizeof(REAL));
        }
        if (!S) continue;
        add_probes(Y, PANEL, S, rows_of(r), columns, checks->P);
        for (long i = 0; i < r; i++) {
            const REAL *x = Y + i * PANEL, *given = R + i * m + first;
            REAL RR = 0, RX = 0;
            SUMS(j, columns, RR, RX) { RR += given[j] * given[j]; RX += given[j] * x[j]; }
            checks->RR += RR, checks->RX += RX;
        }
    }
    return energy;
}

/* The lower triangle of M (r x r) in rows_of(r) rows, continued by an identity. */
static void pad(const REAL *M, long r, REAL *L, long threads)
{
    SHARED(threads)
    for (long i = 0; i < rows_of(r); i++) {
        REAL *row = L + i * row_of(r);
        const long given = i < r ? i + 1 : 0;
        memcpy(row, M + i * r, given * sizeof(REAL));
        memset(row + given, 0, (row_of(r) - given) * sizeof(REAL));
        if (i >= r) row[i] = 1;
    }
}

/* X = -(F F^T)^-1 R for a Cholesky factor F, of which only the lower triangle (r x r) is read. R and X: r x m. work:
 * solve_size() numbers. */
void KERNEL(minus_substitute)(const REAL *F, const REAL *R, REAL *X, REAL *work, long r, long m, long threads)
{
    const long number = (m + PANEL - 1) / PANEL, share = (number + threads - 1) / threads;
    REAL *L = work, *panels = L + rows_of(r) * row_of(r);
    pad(F, r, L, threads);
    for (long i = 0; i < r; i++) L[i * row_of(r) + i] = 1 / L[i * row_of(r) + i];
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static)
#endif
    for (long thread = 0; thread < threads; thread++) {
        struct checks none = {NULL, NULL, NULL, 0, 0, 0};
        solve_panels(L, R, X, panels + thread * rows_of(r) * PANEL, r, m, thread * share, (thread + 1) * share, &none);
    }
}

/* X = -(G + lam I)^-1 R by a Cholesky factor. G: r x r, R and X: r x m. work: solve_size() numbers. Returns 0 if there is
 * no solution, because the factorisation failed, or because lam < resolved ||G||_F and no probes S (m x PROBES) are given to
 * check X; 2 if X was checked; otherwise 1. found: ||G||_F, G's largest entry, <X, (G + lam I) X> and ||X||^2; if X was
 * checked, also ||R||^2, <R, X> and ||(R + (G + lam I) X) S||^2. */
int KERNEL(minus_solve)(
    const REAL *G, const REAL *R, REAL *X, const REAL *S, REAL *work, long r, long m, long threads, double lam,
    double resolved, double *found)
{
    double squares = 0, largest = 0, energy = 0, RR = 0, RX = 0, XX = 0;
    SUMS(i, r * r, squares) squares += (double)G[i] * G[i];
    for (long i = 0; i < r; i++) largest = fmax(largest, G[i * r + i]);
    found[0] = sqrt(squares), found[1] = largest;
    if (lam >= resolved * found[0]) S = NULL;
    else if (!S && m) return 0; /* an empty tensor has no address */
    REAL *L = work, *panels = L + rows_of(r) * row_of(r), *probed = panels + threads * rows_of(r) * PANEL;
    pad(G, r, L, threads);
    for (long i = 0; i < r; i++) L[i * row_of(r) + i] += (REAL)lam;
    if (!factorize(L, rows_of(r), row_of(r), panels, threads)) return 0;
    const long number = (m + PANEL - 1) / PANEL, share = (number + threads - 1) / threads;
    const long probes = S ? rows_of(r) * PROBES : 0;
    memset(probed, 0, threads * 2 * probes * sizeof(REAL));
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1) schedule(static) reduction(+ : energy, RR, RX, XX)
#endif
    for (long thread = 0; thread < threads; thread++) {
        REAL *Y = panels + thread * rows_of(r) * PANEL, *P = probed + thread * 2 * probes;
        struct checks checks = {S, P, P + probes, 0, 0, 0};
        energy += solve_panels(L, R, X, Y, r, m, thread * share, (thread + 1) * share, &checks);
        RR += checks.RR, RX += checks.RX, XX += checks.XX;
    }
    found[2] = energy, found[3] = XX;
    if (!S) return 1;
    for (long i = 0; i < 2 * probes; i++)
        for (long thread = 1; thread < threads; thread++) probed[i] += probed[thread * 2 * probes + i];
    found[4] = RR, found[5] = RX;
    found[6] = squared_error(G, probed, probed + probes, r, (REAL)lam);
    return 2;
}
