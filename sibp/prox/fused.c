/* One round of sibp.prox.nonlinear's conjugate gradients in span coordinates, for activations of two linear pieces
 *     s(z) = z for z > 0, a z otherwise      (a = 0: ReLU, a = 1: identity).
 *
 * Everything but the product with K happens here, in three passes over a few columns (neurons) at a time, so that all
 * their arrays stay in the cache. All arrays are row-major, N x m, but those of one number a column. Compile with
 * -DREAL=float or double; `sibp/prox/fused.py` does. The names are those of nonlinear.py.
 */

#define WIDTH 16 /* columns at a time: whole cache lines, and whole vectors of any instruction set */

static inline REAL value(REAL z, REAL a) { return z > 0 ? z : a * z; }
static inline REAL slope(REAL z, REAL a) { return z > 0 ? (REAL)1 : a; }
static inline REAL ratio(REAL p, REAL q) { return q > 0 ? p / q : (REAL)0; }

/* f = ||s(Z) - T||^2, G = (s(Z) - T) s'(Z) at U = 0, and the squared gradients that are nothing but rounding. */
void start(long N, long m, REAL a, REAL rounding, const REAL *Z, const REAL *T, REAL *G, REAL *f, REAL *negligible)
{
    for (long j = 0; j < m; j++) f[j] = negligible[j] = 0;
    for (long i = 0; i < N; i++)
        for (long j = 0; j < m; j++) {
            long k = i * m + j;
            REAL r = value(Z[k], a) - T[k];
            f[j] += r * r;
            negligible[j] += rounding * rounding * T[k] * T[k];
            G[k] = r * slope(Z[k], a);
        }
}

typedef struct {
    long N, m;
    REAL a, lam, rounding, shrink_factor;
    double step, descent; /* gain the accepted step lengths and the squared gradient norms */
} Round;

/* From G and KG = K G to the next point and the gradient there, which replaces G_old, for w columns; all pointers are
 * at the first of them. Inlined with a constant w, so that the sums of a column stay in vector registers. */
static inline __attribute__((always_inline)) void columns(
    Round *r, const long w, REAL *restrict Z, REAL *restrict U, REAL *restrict KU, const REAL *restrict T,
    REAL *restrict D, REAL *restrict KD, const REAL *restrict G, REAL *restrict G_old, const REAL *restrict KG,
    REAL *restrict f, REAL *restrict gg_old, REAL *restrict shrink, const REAL *restrict negligible)
{
    const long N = r->N, m = r->m;
    const REAL a = r->a, lam = r->lam;
    REAL beta[WIDTH], t[WIDTH], gg[WIDTH];

    REAL gKg[WIDTH] = {0}, g2[WIDTH] = {0}, oldKg[WIDTH] = {0}, gKd[WIDTH] = {0};
    for (long i = 0; i < N; i++)
        for (long j = 0; j < w; j++) {
            long k = i * m + j;
            gKg[j] += G[k] * KG[k];
            g2[j] += G[k] * G[k];
            oldKg[j] += G_old[k] * KG[k];
            gKd[j] += G[k] * KD[k];
        }
    for (long j = 0; j < w; j++) {
        /* A product: what is not finite stays so, and is seen in `descent`. */
        gg[j] = gKg[j] * (g2[j] > negligible[j] && gKg[j] > r->rounding * g2[j]);
        REAL b = ratio(gg[j] - oldKg[j], gg_old[j]);
        b = b > 0 ? b : (REAL)0;
        beta[j] = b * gKd[j] >= gKg[j] ? (REAL)0 : b; /* descent only */
    }

    REAL gKd_new[WIDTH] = {0}, dKd[WIDTH] = {0}, curvature[WIDTH] = {0};
    for (long i = 0; i < N; i++)
        for (long j = 0; j < w; j++) {
            long k = i * m + j;
            REAL d = beta[j] * D[k] - G[k], Kd = beta[j] * KD[k] - KG[k], sKd = slope(Z[k], a) * Kd;
            D[k] = d;
            KD[k] = Kd;
            gKd_new[j] -= G[k] * Kd;
            dKd[j] += d * Kd;
            curvature[j] += sKd * sKd;
        }
    for (long j = 0; j < w; j++)
        t[j] = gg[j] > 0 ? shrink[j] * ratio(gKd_new[j], curvature[j] + lam * dKd[j]) : (REAL)0;

    REAL residual[WIDTH] = {0}, norm[WIDTH] = {0};
    for (long i = 0; i < N; i++)
        for (long j = 0; j < w; j++) {
            long k = i * m + j;
            REAL e = value(Z[k] + t[j] * KD[k], a) - T[k];
            residual[j] += e * e;
            norm[j] += (U[k] + t[j] * D[k]) * (KU[k] + t[j] * KD[k]);
        }
    for (long j = 0; j < w; j++) {
        REAL f_try = residual[j] + lam * norm[j];
        int accept = f_try < f[j];
        if (!accept) t[j] = 0;
        f[j] = accept ? f_try : f[j];
        shrink[j] = accept ? (REAL)1 : shrink[j] * r->shrink_factor;
        gg_old[j] = gg[j];
        r->step += t[j];
        r->descent += gg[j];
    }

    for (long i = 0; i < N; i++)
        for (long j = 0; j < w; j++) {
            long k = i * m + j;
            /* t = 0 has to keep the point even where D is not finite. */
            REAL z = Z[k] + (t[j] != 0 ? t[j] * KD[k] : (REAL)0);
            REAL u = U[k] + (t[j] != 0 ? t[j] * D[k] : (REAL)0);
            Z[k] = z;
            U[k] = u;
            KU[k] += t[j] != 0 ? t[j] * KD[k] : (REAL)0;
            G_old[k] = (value(z, a) - T[k]) * slope(z, a) + lam * u;
        }
}

/* All columns. */
void advance(Round *r, REAL *Z, REAL *U, REAL *KU, const REAL *T, REAL *D, REAL *KD, const REAL *G, REAL *G_old,
             const REAL *KG, REAL *f, REAL *gg_old, REAL *shrink, const REAL *negligible)
{
#define COLUMNS(w, j)                                                                                               \
    columns(r, w, Z + (j), U + (j), KU + (j), T + (j), D + (j), KD + (j), G + (j), G_old + (j), KG + (j), f + (j), \
            gg_old + (j), shrink + (j), negligible + (j))
    long j = 0;
    for (; j + WIDTH <= r->m; j += WIDTH) COLUMNS(WIDTH, j);
    if (j < r->m) COLUMNS(r->m - j, j);
}
