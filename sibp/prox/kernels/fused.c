/* The conjugate gradient iterations of sibp.prox.solvers.nonlinear, for the activations of activations.h: those of two
 * linear pieces,
 *     s(z) = z for z > 0, a z otherwise      (a = 0: ReLU, a = 1: identity),
 * and smooth ones, whose residuals and slopes are stored, since an exponential costs more than a load from cache.
 *
 * Neurons are independent, so a block of them completes all iterations before the next block begins: its data then stay in
 * cache. Arrays have one row per neuron: outputs have N numbers, one per sample (pre-activations, forward products), and
 * coefficients r, the size of the coordinates; rows are padded with zeros to whole vectors. Names are those of
 * nonlinear.py; X stands for the coefficients x.
 */

#include <float.h>
#include <math.h>

#include "activations.h"
#include "transpose.h"

#define BLOCK 32 /* neurons in a block, a multiple of SIDE */

static inline REAL ratio(REAL p, REAL q) { return q > 0 ? p / q : (REAL)0; }

typedef struct {
    long N, r, m, direct, iterations, threads, kind;
    REAL a, lam, rounding, residual_rounding, shrink_factor, cancellation;
    REAL error, tolerated; /* squared */
    REAL bound;            /* of ||change||^2 / ||x||^2 */
    const REAL *Z, *T;   /* N x m */
    const REAL *matrix;  /* N x N, the Gram matrix K; in direct coordinates Phi, N x r */
    REAL *X;             /* m x r, the answer */
    REAL *work;          /* work_size() numbers */
    REAL *start, *f, *norm, *steps, *descent, *doubtful, *most; /* one number per neuron */
} Problem;
enum { START, END, NORM, STEPS, DESCENT, DOUBTFUL, MOST, METRICS };

typedef struct {
    long N, r, direct; /* N and r, padded */
    REAL *Z, *T, *KP, *KG;   /* outputs */
    REAL *X, *P, *G, *G_old; /* coefficients */
    REAL *R, *S;             /* outputs for smooth activations: s(Z) - T and s'(Z) */
    REAL *R_try, *S_try;     /* the same at one neuron's trial point */
    REAL *E; /* outputs, (s(Z) - T) s'(Z); in span coordinates plus lam x, stored as the next gradient */
    REAL gg_old[BLOCK], pp[BLOCK], xp[BLOCK], shrink[BLOCK], negligible[BLOCK];
} Block;

/* out (BLOCK x row) = lam X + in (BLOCK x in_row) M, with inner rows of M; row is a multiple of LANES. */
static void product(
    const REAL *in, long in_row, const REAL *M, long row, long inner, const REAL *X, REAL lam, REAL *out)
{
    const long vectors = row / LANES, tiles = (vectors + WIDE - 1) / WIDE;
    for (long k = 0, done = 0; k < tiles; k++) {
        const long wide = (vectors - done + tiles - k - 1) / (tiles - k), c = done * LANES; /* tiles of nearly equal width */
        for (long p = 0; p < BLOCK; p += SIDE) {
            const REAL *from = in + p * in_row, *x = X + p * row + c;
            REAL *to = out + p * row + c;
            tile(from, in_row, M + c, row, inner, x, lam, to, wide);
        }
        done += wide;
    }
}

/* s(z) - T, and s' where it is stored, at the points Z + t KP; returns the squared residual. T's padding is s(0). */
static inline __attribute__((always_inline)) REAL evaluate(
    const Problem *p, long N, const REAL *Z, REAL t, const REAL *KP, const REAL *T, REAL *R, REAL *S, const int kind)
{
    const REAL a = p->a;
    REAL residual = 0;
    if (kind == PIECES) {
        SUMS(i, N, residual) {
            const REAL e = at(Z[i] + t * KP[i], a, kind).value - T[i];
            residual += e * e;
        }
        return residual;
    }
    SUMS(i, N, residual) {
        const Point s = at(Z[i] + t * KP[i], a, kind);
        const REAL e = s.value - T[i];
        R[i] = e;
        S[i] = s.slope;
        residual += e * e;
    }
    return residual;
}

/* A neuron at x = 0: f = ||s(Z) - T||^2, E, and the squared gradient below which there is only rounding. */
static inline __attribute__((always_inline)) void begin(const Problem *p, Block *b, long q, long j, const int kind)
{
    const long N = b->N;
    const REAL a = p->a, *Z = b->Z + q * N;
    REAL *T = b->T + q * N, *E = b->E + q * N, *R = b->R + q * N, *S = b->S + q * N, TT = 0;
    SUMS(i, N, TT) TT += T[i] * T[i];
    for (long i = p->N; i < N; i++) T[i] = at(0, a, kind).value;
    p->start[j] = p->f[j] = evaluate(p, N, Z, 0, b->KP + q * N, T, R, S, kind);
    if (kind == PIECES)
        EACH(i, N) E[i] = (at(Z[i], a, kind).value - T[i]) * at(Z[i], a, kind).slope;
    else
        EACH(i, N) E[i] = R[i] * S[i];
    b->negligible[q] = p->residual_rounding * TT;
    b->shrink[q] = 1;
    p->norm[j] = b->gg_old[q] = b->pp[q] = b->xp[q] = p->steps[j] = p->descent[j] = 0;
}

/* One iteration from G and KG to the next point; unless it is the last, also E and (in the span) the gradient there. */
static inline __attribute__((always_inline)) void neuron(
    const Problem *p, Block *b, long q, long j, int last, const int direct, const int kind)
{
    const long N = b->N, size = direct ? b->r : N;
    const REAL a = p->a, lam = p->lam;
    REAL *Z = b->Z + q * N, *T = b->T + q * N, *KP = b->KP + q * N, *KG = b->KG + q * N, *E = b->E + q * N;
    REAL *R = b->R + q * N, *S = b->S + q * N;
    REAL *X = b->X + q * size, *P = b->P + q * size, *G = b->G + q * size, *G_old = b->G_old + q * size;
    /* <x, y> is the dot product of x with K y in span coordinates, and with y in direct ones. */
    REAL *dual_G = direct ? G : KG, *dual_P = direct ? P : KP;

    REAL gg = 0, g2 = 0, old = 0, gp = 0, xg = 0;
    SUMS(i, size, gg, g2, old, gp, xg) {
        gg += G[i] * dual_G[i];
        g2 += G[i] * G[i];
        old += G_old[i] * dual_G[i];
        gp += G[i] * dual_P[i];
        xg += X[i] * dual_G[i];
    }
    REAL gg_used = gg * (g2 > b->negligible[q] && gg > p->rounding * g2); /* a product preserves NaN and Inf */
    REAL beta = ratio(gg_used - old, b->gg_old[q]);
    beta = beta > 0 ? beta : (REAL)0;
    const REAL ahead = beta * beta * b->pp[q], left = ahead - 2 * beta * gp + gg;
    beta = beta * gp >= gg || left <= p->cancellation * (gg + ahead) ? (REAL)0 : beta; /* _descent_beta() in nonlinear.py */

    /* The direction P <- beta P - G, and with it <P, P>, <X, P> and -<G, P>. */
    const REAL pp = b->pp[q] = beta * (beta * b->pp[q] - 2 * gp) + gg, xp = beta * b->xp[q] - xg, gp_new = gg - beta * gp;
    REAL curvature = 0;
    SUMS(i, N, curvature) {
        KP[i] = beta * KP[i] - KG[i];
        REAL sKP = (kind == PIECES ? at(Z[i], a, kind).slope : S[i]) * KP[i];
        curvature += sKP * sKP;
        if (!direct) P[i] = beta * P[i] - G[i];
    }
    if (direct) EACH(i, size) P[i] = beta * P[i] - G[i];
    REAL t = gg_used > 0 ? b->shrink[q] * ratio(gp_new, curvature + lam * pp) : (REAL)0;

    REAL norm = p->norm[j] + t * (2 * xp + t * pp);
    REAL f_try = evaluate(p, N, Z, t, KP, T, b->R_try, b->S_try, kind) + lam * norm;
    int accept = f_try < p->f[j];
    b->xp[q] = accept ? xp + t * pp : xp;
    b->shrink[q] = accept ? (REAL)1 : b->shrink[q] * p->shrink_factor;
    b->gg_old[q] = gg_used;
    p->descent[j] += gg_used;
    if (accept) {
        p->f[j] = f_try;
        p->norm[j] = norm;
        p->steps[j] += t;
        EACH(i, size) X[i] += t * P[i];
        if (last) return;
        EACH(i, N) Z[i] += t * KP[i];
        if (kind != PIECES) {
            memcpy(R, b->R_try, N * sizeof(REAL));
            memcpy(S, b->S_try, N * sizeof(REAL));
        }
    }
    EACH(i, N) {
        const Point here = at(Z[i], a, PIECES);
        const REAL e = kind == PIECES ? (here.value - T[i]) * here.slope : R[i] * S[i];
        E[i] = direct ? e : e + lam * X[i];
    }
}

static void begin_all(const Problem *p, Block *b, long count, long first)
{
#define CALL(kind) \
    for (long q = 0; q < count; q++) begin(p, b, q, first + q, kind)
    BY_KIND(p->kind, CALL)
#undef CALL
}

static void neurons(const Problem *p, Block *b, long count, long first, int last)
{
#define CALL(kind) \
    if (p->direct) \
        for (long q = 0; q < count; q++) neuron(p, b, q, first + q, last, 1, kind); \
    else \
        for (long q = 0; q < count; q++) neuron(p, b, q, first + q, last, 0, kind)
    BY_KIND(p->kind, CALL)
#undef CALL
}

/* Whether a neuron's answer may be dominated by rounding (_doubtful() in nonlinear.py), and a bound of its squared change. */
static void check_answer(const Problem *p, const REAL *X, long size, long j)
{
    REAL xx = 0;
    SUMS(i, size, xx) xx += X[i] * X[i];
    const REAL error = p->error * xx / p->start[j], decrease = (p->start[j] - p->f[j]) / p->start[j];
    p->doubtful[j] = error > p->tolerated || decrease * decrease < 16 * error;
    const REAL lost = size * (sizeof(REAL) == 4 ? FLT_MIN : DBL_MIN); /* bounds the squares that underflowed */
    p->most[j] = p->bound * (xx + lost);
}

static long block_size(long N, long r, long direct, long kind)
{
    const long kept = kind == PIECES ? 0 : (2 * BLOCK + 2) * filled_up(N);
    return BLOCK * (filled_up(N) * (direct ? 5 : 4) + filled_up(direct ? r : N) * 4) + kept;
}

long KERNEL(work_size)(long N, long r, long m, long direct, long threads, long kind)
{
    const long matrices = direct ? N * filled_up(r) + r * filled_up(N) : N * filled_up(N);
    return filled_up(matrices) + threads * block_size(N, r, direct, kind) + METRICS * m;
}

/* All iterations of the block of neurons that begins at `first`; memory: block_size() numbers. */
static void advance(const Problem *p, REAL *memory, const REAL *matrix, const REAL *transposed, long first)
{
    Block b = {.N = filled_up(p->N), .r = filled_up(p->direct ? p->r : p->N), .direct = p->direct};
    const long count = least(BLOCK, p->m - first), outputs = BLOCK * b.N, coefficients = BLOCK * b.r;
    memset(memory, 0, block_size(p->N, p->r, p->direct, p->kind) * sizeof(REAL));
    REAL **arrays[] = {&b.Z, &b.T, &b.KP, &b.KG, &b.X, &b.P, &b.G, &b.G_old, &b.E};
    for (int k = 0; k < 8 + p->direct; k++) {
        *arrays[k] = memory;
        memory += k >= 4 && k < 8 ? coefficients : outputs;
    }
    if (p->kind != PIECES) {
        b.R = memory;
        b.S = b.R + outputs;
        b.R_try = b.S + outputs;
        b.S_try = b.R_try + b.N;
    } else {
        b.R = b.S = b.R_try = b.S_try = b.Z; /* unused */
    }
    transpose(p->Z + first, p->m, p->N, count, b.Z, b.N);
    transpose(p->T + first, p->m, p->N, count, b.T, b.N);
    if (!p->direct) b.E = b.G;
    begin_all(p, &b, count, first);
    for (long k = 0; k < p->iterations; k++) {
        const int last = k == p->iterations - 1;
        if (p->direct) {
            product(b.E, b.N, matrix, b.r, p->N, b.X, p->lam, b.G); /* lam x + Phi^T E */
            product(b.G, b.r, transposed, b.N, p->r, b.KG, 0, b.KG);
            neurons(p, &b, count, first, last);
        } else {
            product(b.G, b.N, matrix, b.N, p->N, b.KG, 0, b.KG);
            b.E = b.G_old; /* the next gradient overwrites the previous one */
            neurons(p, &b, count, first, last);
        }
        REAL *G = b.G;
        b.G = b.G_old;
        b.G_old = G;
    }
    for (long q = 0; q < count; q++) check_answer(p, b.X + q * b.r, b.r, first + q);
    for (long q = 0; q < count; q++) memcpy(p->X + (first + q) * p->r, b.X + q * b.r, p->r * sizeof(REAL));
}

/* Bounds of rounding errors: see Coordinates.rounding, .amplification and .squared_norm_of_forward. */
static void set_rounding(Problem *p, double rounding_units)
{
    const double eps = sizeof(REAL) == 4 ? FLT_EPSILON : DBL_EPSILON;
    double squares = 0, largest = 0;
    SUMS(i, p->N * p->r, squares) squares += (double)p->matrix[i] * p->matrix[i];
    if (!p->direct)
        for (long i = 0; i < p->N; i++) largest = fmax(largest, p->matrix[i * p->N + i]);
    p->rounding = (REAL)(largest * eps * sqrt(p->N));
    p->bound = p->direct ? 1 : (REAL)(largest * p->N); /* at least tr(K) */
    p->residual_rounding = (REAL)((p->direct ? squares : 1) * rounding_units * eps * rounding_units * eps);
    p->error = (REAL)squares * (REAL)(eps * eps); /* infinite on overflow, so that answers are doubtful */
}

/* All iterations of a group's neurons; totals: METRICS sums over them. */
static void solve(const Problem *p, double *totals)
{
    const long row = filled_up(p->direct ? p->r : p->N), output_row = filled_up(p->N);
    REAL *matrix = p->work, *transposed = matrix + p->N * row;
    for (long i = 0; i < p->N; i++) {
        memcpy(matrix + i * row, p->matrix + i * p->r, p->r * sizeof(REAL));
        memset(matrix + i * row + p->r, 0, (row - p->r) * sizeof(REAL));
    }
    if (p->direct) {
        memset(transposed, 0, p->r * output_row * sizeof(REAL));
        transpose(p->matrix, p->r, p->N, p->r, transposed, output_row);
    }
    REAL *memory = p->work + filled_up(p->direct ? p->N * row + p->r * output_row : p->N * row);
    const long each = block_size(p->N, p->r, p->direct, p->kind);
    const long blocks = (p->m + BLOCK - 1) / BLOCK, share = (blocks + p->threads - 1) / p->threads;
    SHARED(p->threads)
    for (long thread = 0; thread < p->threads; thread++)
        for (long k = thread * share; k < least((thread + 1) * share, blocks); k++)
            advance(p, memory + thread * each, matrix, transposed, k * BLOCK);
    for (long metric = 0; metric < METRICS; metric++)
        for (long j = 0; j < p->m; j++) totals[metric] += p->start[metric * p->m + j];
}

/* Z, T: groups x N x m; matrix: groups x N x r; X: groups x m x r, the answer; totals: METRICS sums over all neurons. */
void KERNEL(iterate)(
    const REAL *Z, const REAL *T, const REAL *matrix, REAL *X, REAL *work, long groups, long N, long r, long m,
    long direct, long iterations, long threads, long kind, double a, double lam, double shrink_factor,
    double cancellation, double rounding_units, double tolerance, double *totals)
{
    for (long metric = 0; metric < METRICS; metric++) totals[metric] = 0;
    REAL *metrics = work + KERNEL(work_size)(N, r, m, direct, threads, kind) - METRICS * m;
    for (long g = 0; g < groups; g++) {
        Problem p = {
            .N = N, .r = r, .m = m, .direct = direct, .iterations = iterations, .threads = threads, .kind = kind,
            .a = (REAL)a, .lam = (REAL)lam, .shrink_factor = (REAL)shrink_factor,
            .cancellation = (REAL)cancellation, .tolerated = (REAL)(tolerance * tolerance),
            .Z = Z + g * N * m, .T = T + g * N * m, .matrix = matrix + g * N * r, .X = X + g * m * r, .work = work,
            .start = metrics + START * m,
            .f = metrics + END * m, .norm = metrics + NORM * m, .steps = metrics + STEPS * m,
            .descent = metrics + DESCENT * m, .doubtful = metrics + DOUBTFUL * m, .most = metrics + MOST * m};
        set_rounding(&p, rounding_units);
        solve(&p, totals);
    }
}
