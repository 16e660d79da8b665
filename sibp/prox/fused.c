/* One round of sibp.prox.nonlinear's conjugate gradients, for activations of two linear pieces
 *     s(z) = z for z > 0, a z otherwise      (a = 0: ReLU, a = 1: identity).
 *
 * Everything but the products with the Gram matrix or with Phi happens here. Arrays are row-major with one row a
 * neuron, so that all a neuron needs lies in the nearest cache: images have N numbers (one a sample), coefficients r,
 * the size of the coordinates. Compile with -DREAL=float or double; `sibp/prox/fused.py` does. The names are those of
 * nonlinear.py; X stands for the coefficients x.
 */

#include <string.h>

static inline REAL value(REAL z, REAL a) { return z > 0 ? z : a * z; }
static inline REAL slope(REAL z, REAL a) { return z > 0 ? (REAL)1 : a; }
static inline REAL ratio(REAL p, REAL q) { return q > 0 ? p / q : (REAL)0; }

typedef struct {
    long N, r, m, direct, threads, first;
    REAL a, lam, rounding, residual_rounding, shrink_factor;
    REAL *Z, *T, *KD, *KG; /* images */
    REAL *KX;              /* image, in span coordinates only */
    REAL *X, *D, *G, *G_old; /* coefficients */
    REAL *E; /* image, (s(Z) - T) s'(Z); in span coordinates lam x is added, and it takes the place of G or G_old */
    /* one number a neuron */
    REAL *start, *f, *norm, *steps, *descent, *gg_old, *shrink, *negligible;
} Round;

#define EACH(i, n) _Pragma("GCC ivdep") for (long i = 0; i < (n); i++)
#define NEURONS _Pragma("omp parallel for num_threads(r->threads) if (r->threads > 1) schedule(static)") \
    for (long j = 0; j < r->m; j++)

/* to (columns x rows) = from' (rows x columns), by square tiles: torch's own copy takes twice as long. */
#define TILE 16
void turn(const REAL *restrict from, REAL *restrict to, long rows, long columns)
{
    REAL tile[TILE][TILE];
    for (long j = 0; j < columns; j += TILE)
        for (long i = 0; i < rows; i += TILE) {
            if (i + TILE <= rows && j + TILE <= columns) {
                for (long p = 0; p < TILE; p++)
                    for (long q = 0; q < TILE; q++) tile[q][p] = from[(i + p) * columns + j + q];
                for (long q = 0; q < TILE; q++) memcpy(to + (j + q) * rows + i, tile[q], sizeof tile[q]);
            } else
                for (long q = j; q < columns && q < j + TILE; q++)
                    for (long p = i; p < rows && p < i + TILE; p++) to[q * rows + p] = from[p * columns + q];
        }
}

/* f = ||s(Z) - T||^2 and E at x = 0, and the squared gradients that are nothing but rounding. */
void start(const Round *r)
{
    NEURONS {
        const long N = r->N;
        const REAL a = r->a, *Z = r->Z + j * N, *T = r->T + j * N;
        REAL *E = r->E + j * N, f = 0, TT = 0;
        EACH(i, N) E[i] = value(Z[i], a) - T[i];
        EACH(i, N) {
            f += E[i] * E[i];
            TT += T[i] * T[i];
        }
        EACH(i, N) E[i] *= slope(Z[i], a);
        r->start[j] = r->f[j] = f;
        r->negligible[j] = r->residual_rounding * TT;
        r->shrink[j] = 1;
        r->norm[j] = r->gg_old[j] = r->steps[j] = r->descent[j] = 0;
    }
}

/* From G and KG to the next point, with E and (in span coordinates) the gradient there. */
static inline __attribute__((always_inline)) void neuron(Round *r, long j, const int direct)
{
    const long N = r->N, size = direct ? r->r : N;
    const REAL a = r->a, lam = r->lam;
    REAL *Z = r->Z + j * N, *T = r->T + j * N, *KD = r->KD + j * N, *KG = r->KG + j * N, *E = r->E + j * N;
    REAL *X = r->X + j * size, *D = r->D + j * size, *G = r->G + j * size, *G_old = r->G_old + j * size;
    /* <x, y> is the plain product x.(dual y): with K y in span coordinates, with y itself in direct ones. */
    REAL *dual_G = direct ? G : KG, *dual_D = direct ? D : KD, *dual_X = direct ? X : r->KX + j * N;

    if (r->first) { /* here rather than in `start`: it costs nothing in the nearest cache */
        memset(X, 0, size * sizeof(REAL));
        memset(D, 0, size * sizeof(REAL));
        memset(KD, 0, N * sizeof(REAL));
        if (!direct) memset(dual_X, 0, N * sizeof(REAL));
    }
    REAL gg = 0, g2 = 0, old = 0, gd = 0;
    EACH(i, size) {
        gg += G[i] * dual_G[i];
        g2 += G[i] * G[i];
        old += G_old[i] * dual_G[i];
        gd += G[i] * dual_D[i];
    }
    REAL gg_used = gg * (g2 > r->negligible[j] && gg > r->rounding * g2); /* a product: what is not finite stays so */
    REAL beta = ratio(gg_used - old, r->gg_old[j]);
    beta = beta > 0 ? beta : (REAL)0;
    beta = beta * gd >= gg ? (REAL)0 : beta; /* descent only */

    EACH(i, size) D[i] = beta * D[i] - G[i];
    REAL curvature = 0, gd_new = 0, dd = 0;
    EACH(i, N) {
        KD[i] = beta * KD[i] - KG[i];
        REAL sKd = slope(Z[i], a) * KD[i];
        curvature += sKd * sKd;
    }
    EACH(i, size) {
        gd_new -= G[i] * dual_D[i];
        dd += D[i] * dual_D[i];
    }
    REAL t = gg_used > 0 ? r->shrink[j] * ratio(gd_new, curvature + lam * dd) : (REAL)0;

    REAL residual = 0, norm = 0;
    EACH(i, N) {
        REAL e = value(Z[i] + t * KD[i], a) - T[i];
        residual += e * e;
    }
    EACH(i, size) norm += (X[i] + t * D[i]) * (dual_X[i] + t * dual_D[i]);
    REAL f_try = residual + lam * norm;
    int accept = f_try < r->f[j];
    r->shrink[j] = accept ? (REAL)1 : r->shrink[j] * r->shrink_factor;
    r->gg_old[j] = gg_used;
    r->descent[j] += gg_used;
    if (accept) {
        r->f[j] = f_try;
        r->norm[j] = norm;
        r->steps[j] += t;
        EACH(i, N) Z[i] += t * KD[i];
        EACH(i, size) X[i] += t * D[i];
        if (!direct) EACH(i, N) dual_X[i] += t * KD[i];
    }
    EACH(i, N) E[i] = (value(Z[i], a) - T[i]) * slope(Z[i], a);
    if (!direct) EACH(i, N) E[i] += lam * X[i];
}

void advance(Round *r)
{
    if (r->direct) { NEURONS neuron(r, j, 1); }
    else { NEURONS neuron(r, j, 0); }
}
