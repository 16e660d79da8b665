/* Activations and their slopes, without calls or branches, so that compilers vectorise them. A smooth activation needs one
 * exponential for both value and slope; its argument is never positive, so it cannot overflow. NaN is preserved.
 *
 * Errors, against exact values: about 2 units in the last place of the value (4 for tanh and in the far tail of GELU),
 * and eps for slopes; tests/prox/test_smooth_kernels.py measures them. */
#include "common.h"

enum { PIECES, TANH, SIGMOID, SILU, GELU, GELU_TANH }; /* KINDS of kernels/__init__.py */

typedef struct {
    REAL value, slope;
} Point;

/* An integer of REAL's size. */
typedef __typeof__(__builtin_choose_expr(sizeof(REAL) == 4, 0u, 0ull)) Integer;
#define IS_FLOAT (sizeof(REAL) == 4)
#define FRACTION (IS_FLOAT ? 23 : 52) /* bits */
#define BIAS (IS_FLOAT ? 127u : 1023u)
#define WHOLE (IS_FLOAT ? (REAL)12582912 : (REAL)6755399441055744) /* 1.5 x 2^FRACTION: adding it rounds to an integer */
#define LOWEST (IS_FLOAT ? (REAL)-87 : (REAL)-708) /* below, the exponential is 0 */

typedef struct {
    REAL below, scale; /* e^x - scale, and scale, a power of 2; both 0 for an e^x of 0 */
} Exponential;

#define ABSOLUTE(x) (IS_FLOAT ? (REAL)__builtin_fabsf((float)(x)) : (REAL)__builtin_fabs(x))
#define WITH_SIGN(x, of) \
    (IS_FLOAT ? (REAL)__builtin_copysignf((float)(x), (float)(of)) : (REAL)__builtin_copysign((x), (of)))

/* e^(x + rest) for x <= 0 or NaN, and |rest| much less than 1: e^x = 2^n e^r with |r| <= log(2) / 2, and e^r - 1 by its
 * Taylor series. */
static inline __attribute__((always_inline)) Exponential exponential(REAL x, REAL rest)
{
    const REAL high = IS_FLOAT ? (REAL)0.693359375 : (REAL)6.93147180369123816490e-01; /* log(2) with its last bits cleared */
    const REAL low = IS_FLOAT ? (REAL)-2.12194440054690583e-4 : (REAL)1.90821492927058770002e-10; /* log(2) - high */
    const REAL safe = x > LOWEST ? x : LOWEST;
    const REAL shifted = safe * (REAL)1.44269504088896340736 + WHOLE, n = shifted - WHOLE; /* rounds to an integer */
    const REAL r = ((safe - n * high) - n * low) + (x > LOWEST ? rest : (REAL)0);
    REAL p;
    if (IS_FLOAT) {
        p = (REAL)(1.0 / 5040); p = p * r + (REAL)(1.0 / 720); p = p * r + (REAL)(1.0 / 120);
        p = p * r + (REAL)(1.0 / 24); p = p * r + (REAL)(1.0 / 6); p = p * r + (REAL)(1.0 / 2);
    } else {
        p = (REAL)(1.0 / 6227020800); p = p * r + (REAL)(1.0 / 479001600); p = p * r + (REAL)(1.0 / 39916800);
        p = p * r + (REAL)(1.0 / 3628800); p = p * r + (REAL)(1.0 / 362880); p = p * r + (REAL)(1.0 / 40320);
        p = p * r + (REAL)(1.0 / 5040); p = p * r + (REAL)(1.0 / 720); p = p * r + (REAL)(1.0 / 120);
        p = p * r + (REAL)(1.0 / 24); p = p * r + (REAL)(1.0 / 6); p = p * r + (REAL)(1.0 / 2);
    }
    Integer bits; /* the last bits of `shifted` are n */
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + BIAS) << FRACTION;
    REAL scale;
    memcpy(&scale, &bits, sizeof scale);
    const REAL counts = x > LOWEST, none = x == x ? (REAL)0 : x;
    return (Exponential){scale * counts * (r + r * r * p) + none, scale * counts};
}

/* (1 - Phi(a)) e^(a^2 / 2) for a >= 0, with Phi the normal distribution function. a + 5 times this is, up to rounding, a
 * polynomial in t = (a - 5) / (a + 5), interpolated at Chebyshev nodes. `top` is where e^(-a^2 / 2) rounds to 0. */
static inline __attribute__((always_inline)) REAL tail(REAL a)
{
    const REAL top = IS_FLOAT ? (REAL)13.5 : (REAL)38, within = a < top ? a : top;
    const REAL share = 1 / (within + 5), t = (within - 5) * share;
    REAL p;
    if (IS_FLOAT) {
        p = (REAL)0.0003758523287; p = p * t + (REAL)-0.001039385784; p = p * t + (REAL)-0.002997823835;
        p = p * t + (REAL)0.02089468732; p = p * t + (REAL)-0.06909889824; p = p * t + (REAL)0.1650059648;
        p = p * t + (REAL)-0.3135360172; p = p * t + (REAL)0.4953063725; p = p * t + (REAL)-0.6653824185;
        p = p * t + (REAL)0.7691930426;
    } else {
        p = (REAL)-1.35654432130984788e-10; p = p * t + (REAL)1.82171635568341306e-9;
        p = p * t + (REAL)7.66301980923605609e-9; p = p * t + (REAL)-9.49015522197570688e-9;
        p = p * t + (REAL)-6.60495187168414351e-8; p = p * t + (REAL)4.24594868988608819e-8;
        p = p * t + (REAL)4.33313480227567897e-7; p = p * t + (REAL)-3.36713657446215078e-7;
        p = p * t + (REAL)-2.76939655436870237e-6; p = p * t + (REAL)3.98092840651947121e-6;
        p = p * t + (REAL)0.0000166812694773256171; p = p * t + (REAL)-0.0000497628162202064313;
        p = p * t + (REAL)-0.0000593757425403367409; p = p * t + (REAL)0.000544899064062130416;
        p = p * t + (REAL)-0.000797869396181805494; p = p * t + (REAL)-0.00299337677031042693;
        p = p * t + (REAL)0.0207950667996775325; p = p * t + (REAL)-0.0691186387063295163;
        p = p * t + (REAL)0.165020366170394132; p = p * t + (REAL)-0.313533156671303802;
        p = p * t + (REAL)0.495305615969976245; p = p * t + (REAL)-0.665382502890056708;
        p = p * t + (REAL)0.769193049750062959;
    }
    return p * share;
}

/* a with the second half of its bits cleared, so that its square is exact. */
static inline __attribute__((always_inline)) REAL rounded_to_half(REAL a)
{
    Integer bits;
    memcpy(&bits, &a, sizeof bits);
    bits &= ~(((Integer)1 << (IS_FLOAT ? 12 : 27)) - 1);
    memcpy(&a, &bits, sizeof a);
    return a;
}

/* The sigmoid s of z, and 1 - s, both to full precision. */
typedef struct {
    REAL s, other;
} Shares;

static inline __attribute__((always_inline)) Shares shares(REAL z)
{
    const Exponential e = exponential(-ABSOLUTE(z), 0);
    const REAL power = e.scale + e.below, large = 1 / (1 + power), small = power * large;
    return z > 0 ? (Shares){large, small} : (Shares){small, large};
}

/* s(z) and s'(z); `kind` is a compile-time constant, and a the slope of PIECES below zero. */
static inline __attribute__((always_inline)) Point at(REAL z, REAL a, const int kind)
{
    if (kind == TANH) { /* (1 - e^-2|z|) / (1 + e^-2|z|), with z's sign */
        const Exponential e = exponential(-2 * ABSOLUTE(z), 0);
        const REAL less = e.below + (e.scale - 1), t = -less / (2 + less); /* e^-2|z| - 1 */
        return (Point){WITH_SIGN(t, z), 1 - t * t};
    }
    if (kind == SIGMOID) {
        const Shares one = shares(z);
        return (Point){one.s, one.s * one.other};
    }
    if (kind == SILU) {
        const Shares one = shares(z);
        return (Point){z * one.s, one.s + z * one.other * one.s};
    }
    if (kind == GELU) { /* z Phi(z) and Phi(z) + z phi(z), Phi and phi of the normal distribution */
        const REAL size = ABSOLUTE(z), near = rounded_to_half(size);
        const Exponential e = exponential((REAL)-0.5 * near * near, (REAL)-0.5 * (size - near) * (size + near));
        const REAL power = e.scale + e.below, beyond = power * tail(size), phi = (REAL)0.398942280401432678 * power;
        const REAL Phi = z > 0 ? 1 - beyond : beyond;
        return (Point){z * Phi, Phi + z * phi};
    }
    if (kind == GELU_TANH) { /* z times the sigmoid of 2 u, u = sqrt(2 / pi) (z + 0.044715 z^3) */
        const REAL scale = (REAL)1.59576912160573071, cubic = (REAL)0.044715;
        const REAL square = z * z < 1000 ? z * z : (REAL)1000; /* beyond, the sigmoid is 0 or 1 */
        const Shares one = shares(scale * z * (1 + cubic * square));
        return (Point){z * one.s, one.s + z * one.other * one.s * (scale * (1 + 3 * cubic * square))};
    }
    return (Point){z > 0 ? z : a * z, z > 0 ? (REAL)1 : a};
}

/* Runs `call` with the kind as a compile-time constant. */
#define BY_KIND(kind, call) \
    switch (kind) { \
    case TANH: call(TANH); break; \
    case SIGMOID: call(SIGMOID); break; \
    case SILU: call(SILU); break; \
    case GELU: call(GELU); break; \
    case GELU_TANH: call(GELU_TANH); break; \
    default: call(PIECES); \
    }
