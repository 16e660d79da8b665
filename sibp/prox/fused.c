/* One round of sibp.prox.nonlinear's conjugate gradients in span coordinates, for activations of two linear pieces
 *     s(z) = z for z > 0, a z otherwise      (a = 0: ReLU, a = 1: identity).
 *
 * Everything but the product with K happens here, in three passes over a few columns (neurons) at a time, so that all
 * their arrays stay in the cache. All arrays are row-major, N x m, but those of one number a column. Compile with
 * -DREAL=float or double; `sibp/prox/fused.py` does. The names are those of nonlinear.py.
 */

#define WIDTH 32 /* columns at a time: whole cache lines, and whole vectors of any instruction set */

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

/* From G and KG = K G to the next point and the gradient there, which replaces G_old.
 * step and descent gain the columns' accepted step lengths and squared gradient norms. */
void advance(long N, long m, REAL a, REAL lam, REAL rounding, REAL shrink_factor, REAL *Z, REAL *U, REAL *KU,
             const REAL *T, REAL *D, REAL *KD, const REAL *G, REAL *G_old, const REAL *KG, REAL *f, REAL *gg_old,
             REAL *shrink, const REAL *negligible, double *step, double *descent)
{
    for (long j0 = 0; j0 < m; j0 += WIDTH) {
        long w = m - j0 < WIDTH ? m - j0 : WIDTH;
        REAL gKg[WIDTH] = {0}, g2[WIDTH] = {0}, oldKg[WIDTH] = {0}, gKd[WIDTH] = {0};
        REAL gg[WIDTH], beta[WIDTH], t[WIDTH], f_try[WIDTH];
        REAL new_gKd[WIDTH] = {0}, dKd[WIDTH] = {0}, curvature[WIDTH] = {0}, residual[WIDTH] = {0}, norm[WIDTH] = {0};

        for (long i = 0; i < N; i++) {
            long k = i * m + j0;
            for (long j = 0; j < w; j++) {
                gKg[j] += G[k + j] * KG[k + j];
                g2[j] += G[k + j] * G[k + j];
                oldKg[j] += G_old[k + j] * KG[k + j];
                gKd[j] += G[k + j] * KD[k + j];
            }
        }
        for (long j = 0; j < w; j++) {
            gg[j] = g2[j] > negligible[j0 + j] && gKg[j] > rounding * g2[j] ? gKg[j] : (REAL)0;
            REAL b = ratio(gg[j] - oldKg[j], gg_old[j0 + j]);
            b = b > 0 ? b : (REAL)0;
            beta[j] = b * gKd[j] >= gKg[j] ? (REAL)0 : b; /* descent only */
        }
        for (long i = 0; i < N; i++) {
            long k = i * m + j0;
            for (long j = 0; j < w; j++) {
                REAL d = beta[j] * D[k + j] - G[k + j], Kd = beta[j] * KD[k + j] - KG[k + j];
                REAL sKd = slope(Z[k + j], a) * Kd;
                D[k + j] = d;
                KD[k + j] = Kd;
                new_gKd[j] -= G[k + j] * Kd;
                dKd[j] += d * Kd;
                curvature[j] += sKd * sKd;
            }
        }
        for (long j = 0; j < w; j++)
            t[j] = gg[j] > 0 ? shrink[j0 + j] * ratio(new_gKd[j], curvature[j] + lam * dKd[j]) : (REAL)0;
        for (long i = 0; i < N; i++) {
            long k = i * m + j0;
            for (long j = 0; j < w; j++) {
                REAL r = value(Z[k + j] + t[j] * KD[k + j], a) - T[k + j];
                residual[j] += r * r;
                norm[j] += (U[k + j] + t[j] * D[k + j]) * (KU[k + j] + t[j] * KD[k + j]);
            }
        }
        for (long j = 0; j < w; j++) {
            f_try[j] = residual[j] + lam * norm[j];
            int accept = f_try[j] < f[j0 + j];
            if (!accept) t[j] = 0;
            f[j0 + j] = accept ? f_try[j] : f[j0 + j];
            shrink[j0 + j] = accept ? (REAL)1 : shrink[j0 + j] * shrink_factor;
            gg_old[j0 + j] = gg[j];
            *step += t[j];
            *descent += gg[j];
        }
        for (long i = 0; i < N; i++) {
            long k = i * m + j0;
            for (long j = 0; j < w; j++) {
                /* t = 0 must keep the point even where D is not finite. */
                REAL z = t[j] != 0 ? Z[k + j] + t[j] * KD[k + j] : Z[k + j];
                REAL u = t[j] != 0 ? U[k + j] + t[j] * D[k + j] : U[k + j];
                REAL Ku = t[j] != 0 ? KU[k + j] + t[j] * KD[k + j] : KU[k + j];
                Z[k + j] = z;
                U[k + j] = u;
                KU[k + j] = Ku;
                G_old[k + j] = (value(z, a) - T[k + j]) * slope(z, a) + lam * u;
            }
        }
    }
}
