"""The C prelude of generated kernels: types, conversions and branch-free mathematical functions.

Two groups of functions:

- From one template, as scalars and on the vector types v4f, v8f, v16f, with identical arithmetic:
  exp, expm1, log, log1p, tanh, erf, sigmoid, floor, ceil, rint, trunc, sqrt, abs, min, max, select and comparisons.
  Scalars are named `dt_expf(x)`, vectors `dt_exp_v16f(x)`; a comparison gives an all-ones integer mask of
  the same width (`int32_t`, `v16i`), which `dt_sel` takes.
- Scalars only, computed in double and rounded once: sin cos tan asin acos atan sinh cosh asinh acosh atanh
  pow fmod (`dt_sinf` …), and exact helpers for integers, f16 and bf16.

All are `static inline`, without tables, branches or library calls, so that loops over the scalar forms
vectorise. The relative error in the main range is at most 5e-7 (double-based ones: half an ulp and a
little); results at infinities, NaN, zeros and denormals follow C99. sin, cos and tan are accurate for
arguments up to 2**28. `max` and `min` return NaN if an operand is NaN.

Polynomials were fitted for this file by reweighted least squares at Chebyshev nodes.
"""

from __future__ import annotations

import functools
import re

from dovetail.codegen.target import CpuTarget, Target

# Functions of one template: F = float type, I = integer type, $ = name suffix.
_TEMPLATE = """
static inline F dt_abs$(F x) { return dt_from$(dt_bits$(x) & 0x7fffffff); }
static inline F dt_neg$(F x) { return -x; }
static inline F dt_copysign$(F x, F s) {
  return dt_from$((dt_bits$(x) & 0x7fffffff) | (dt_bits$(s) & (int32_t)0x80000000));
}
static inline I dt_lt$(F a, F b) { return CMP(a < b); }
static inline I dt_le$(F a, F b) { return CMP(a <= b); }
static inline I dt_eq$(F a, F b) { return CMP(a == b); }
static inline I dt_ne$(F a, F b) { return CMP(a != b); }
static inline F dt_sel$(I m, F a, F b) { return dt_from$((m & dt_bits$(a)) | (~m & dt_bits$(b))); }
static inline F dt_max$(F a, F b) {
  F m = dt_sel$(dt_lt$(a, b), b, a);
  return dt_sel$(dt_ne$(b, b), b, m);
}
static inline F dt_min$(F a, F b) {
  F m = dt_sel$(dt_lt$(b, a), b, a);
  return dt_sel$(dt_ne$(b, b), b, m);
}
static inline F dt_rint$(F x) { return DT_RINT$(x); }
static inline F dt_floor$(F x) { return DT_FLOOR$(x); }
static inline F dt_ceil$(F x) { return -dt_floor$(-x); }
static inline F dt_trunc$(F x) { return dt_copysign$(dt_floor$(dt_abs$(x)), x); }
static inline F dt_exp$(F x) {
  F hi = dt_sel$(dt_lt$(dt_set$(89.5f), x), dt_set$(89.5f), x);
  F c = dt_sel$(dt_lt$(hi, dt_set$(-104.5f)), dt_set$(-104.5f), hi);
  F t = c * 0x1.715476p+0f + 0x1.8p+23f;
  I n = dt_bits$(t) - 0x4b400000;
  F k = t - 0x1.8p+23f;
  F r = c - k * 0.693359375f;
  r = r + k * 2.12194440e-4f;
  F p = r * 1.9790363e-4f + 1.3944650e-3f;
  p = p * r + 8.3334970e-3f;
  p = p * r + 4.1666295e-2f;
  p = p * r + 1.6666666e-1f;
  p = p * r + 0.5f;
  p = p * (r * r) + r;
  p = p + 1.0f;
  I h = n >> 1;
  return p * dt_from$((h + 127) << 23) * dt_from$((n - h + 127) << 23);
}
static inline F dt_log$(F x) {
  I tiny = dt_lt$(x, dt_set$(0x1p-126f));
  F y = dt_sel$(tiny, x * 0x1p+23f, x);
  I b = dt_bits$(y) - 0x3f3504f3;
  F e = dt_tof$(b >> 23) - dt_sel$(tiny, dt_set$(23.0f), dt_set$(0.0f));
  F m = dt_from$((b & 0x007fffff) + 0x3f3504f3) - 1.0f;
  F p = m * 6.746551e-2f - 1.1675628e-1f;
  p = p * m + 1.1888190e-1f;
  p = p * m - 1.2405595e-1f;
  p = p * m + 1.4219549e-1f;
  p = p * m - 1.6667995e-1f;
  p = p * m + 2.0002119e-1f;
  p = p * m - 2.5000010e-1f;
  p = p * m + 3.3333313e-1f;
  F q = m * m;
  F s = p * m * q - e * 2.12194440e-4f;
  s = s - 0.5f * q;
  s = s + m;
  s = s + e * 0.693359375f;
  s = dt_sel$(dt_eq$(x, dt_set$(__builtin_inff())), x, s);
  s = dt_sel$(dt_eq$(x, dt_set$(0.0f)), dt_set$(-__builtin_inff()), s);
  s = dt_sel$(dt_lt$(x, dt_set$(0.0f)), dt_set$(__builtin_nanf("")), s);
  return dt_sel$(dt_ne$(x, x), x, s);
}
static inline F dt_expm1$(F x) {
  F p = x * 1.9790363e-4f + 1.3944650e-3f;
  p = p * x + 8.3334970e-3f;
  p = p * x + 4.1666295e-2f;
  p = p * x + 1.6666666e-1f;
  p = p * x + 0.5f;
  p = p * (x * x) + x;
  return dt_sel$(dt_lt$(dt_abs$(x), dt_set$(0.3466f)), p, dt_exp$(x) - 1.0f);
}
static inline F dt_log1p$(F x) {
  F u = x + 1.0f;
  F r = dt_log$(u) + (x - (u - 1.0f)) / u;
  r = dt_sel$(dt_eq$(x, dt_set$(__builtin_inff())), x, r);
  return dt_sel$(dt_eq$(x, dt_set$(-1.0f)), dt_set$(-__builtin_inff()), r);
}
static inline F dt_sigmoid$(F x) {
  F e = dt_exp$(-dt_abs$(x));
  F s = 1.0f / (1.0f + e);
  return dt_sel$(dt_lt$(x, dt_set$(0.0f)), e * s, s);
}
static inline F dt_tanh$(F x) {
  F a = dt_abs$(x);
  F z = x * x;
  F p = z * -5.7170258e-3f + 2.0650568e-2f;
  p = p * z - 5.3743492e-2f;
  p = p * z + 1.3331491e-1f;
  p = p * z - 3.3333284e-1f;
  p = p * z * x + x;
  F c = dt_sel$(dt_lt$(dt_set$(10.0f), a), dt_set$(10.0f), a);
  F w = 1.0f - 2.0f / (dt_exp$(c + c) + 1.0f);
  F r = dt_sel$(dt_lt$(a, dt_set$(0.625f)), p, dt_copysign$(w, x));
  return dt_sel$(dt_ne$(x, x), x, r);
}
static inline F dt_erf$(F x) {
  F a = dt_abs$(x);
  F c = dt_sel$(dt_lt$(dt_set$(3.925f), a), dt_copysign$(dt_set$(3.925f), x), x);
  F z = c * c;
  F p = z * 2.0420071e-6f + 2.8480583e-4f;
  p = p * z + 3.7794557e-3f;
  p = p * z + 5.2789815e-2f;
  p = p * z + 1.9078015e-1f;
  p = p * z + 1.1283791f;
  F q = z * 3.8004310e-5f + 1.1651768e-3f;
  q = q * z + 1.4997130e-2f;
  q = q * z + 1.1425601e-1f;
  q = q * z + 5.0240723e-1f;
  q = q * z + 1.0f;
  F r = c * p / q;
  return dt_sel$(dt_lt$(dt_set$(1.0f), dt_abs$(r)), dt_copysign$(dt_set$(1.0f), x), r);
}
"""

_SCALAR_TYPES = """
static inline int32_t dt_bitsf(float x) { union { float f; int32_t i; } u = {x}; return u.i; }
static inline float dt_fromf(int32_t x) { union { int32_t i; float f; } u = {x}; return u.f; }
static inline float dt_setf(float x) { return x; }
static inline float dt_tof(int32_t x) { return (float)x; }
static inline float dt_toff(int32_t x) { return (float)x; }
static inline float dt_sqrtf(float x) { return __builtin_sqrtf(x); }
static inline double dt_sqrtd(double x) { return __builtin_sqrt(x); }
static inline float dt_magic_rintf(float x) {
  float a = dt_fromf(dt_bitsf(x) & 0x7fffffff);
  volatile float big = 0x1p+23f;
  float r = a < 0x1p+23f ? (a + big) - big : a;
  return dt_fromf(dt_bitsf(r) | (dt_bitsf(x) & (int32_t)0x80000000));
}
static inline float dt_magic_floorf(float x) {
  float r = dt_magic_rintf(x);
  float s = r > x ? r - 1.0f : r;
  return dt_fromf((dt_bitsf(s) & 0x7fffffff) | (dt_bitsf(x) & (int32_t)0x80000000));
}
static inline double dt_magic_rintd(double x) {
  double a = x < 0 ? -x : x;
  volatile double big = 0x1p+52;
  double r = a < 0x1p+52 ? (a + big) - big : a;
  return __builtin_copysign(r, x);
}
static inline double dt_magic_floord(double x) {
  double r = dt_magic_rintd(x);
  return __builtin_copysign(r > x ? r - 1.0 : r, x);
}
#if defined(__SSE4_1__) || defined(__aarch64__)
#define DT_RINTf(x) __builtin_rintf(x)
#define DT_FLOORf(x) __builtin_floorf(x)
static inline double dt_rintd(double x) { return __builtin_rint(x); }
static inline double dt_floord(double x) { return __builtin_floor(x); }
#else
#define DT_RINTf(x) dt_magic_rintf(x)
#define DT_FLOORf(x) dt_magic_floorf(x)
static inline double dt_rintd(double x) { return dt_magic_rintd(x); }
static inline double dt_floord(double x) { return dt_magic_floord(x); }
#endif
"""

_VECTOR_TYPES = """
typedef float vNf __attribute__((vector_size(BYTES), aligned(4), may_alias));
typedef int32_t vNi __attribute__((vector_size(BYTES), aligned(4), may_alias));
static inline vNi dt_bits_vNf(vNf x) { return (vNi)x; }
static inline vNf dt_from_vNf(vNi x) { return (vNf)x; }
static inline vNf dt_set_vNf(float x) { return (vNf){LIST}; }
static inline vNf dt_tof_vNf(vNi x) { return __builtin_convertvector(x, vNf); }
static inline vNf dt_load_vNf(const float *p) { return *(const vNf *)p; }
static inline void dt_store_vNf(float *p, vNf x) { *(vNf *)p = x; }
#if defined(__clang__) && (defined(__SSE4_1__) || defined(__aarch64__))
#define DT_RINT_vNf(x) __builtin_elementwise_rint(x)
#define DT_FLOOR_vNf(x) __builtin_elementwise_floor(x)
static inline vNf dt_sqrt_vNf(vNf x) { return __builtin_elementwise_sqrt(x); }
#else
static inline vNf DT_RINT_vNf(vNf x) { for (int i = 0; i < N; i++) x[i] = DT_RINTf(x[i]); return x; }
static inline vNf DT_FLOOR_vNf(vNf x) { for (int i = 0; i < N; i++) x[i] = DT_FLOORf(x[i]); return x; }
static inline vNf dt_sqrt_vNf(vNf x) { for (int i = 0; i < N; i++) x[i] = __builtin_sqrtf(x[i]); return x; }
#endif
"""

# Extremes of accumulators; narrow floats: round to nearest, ties to even; NaN stays NaN.
_NARROW = """
/* Running extremes: NaN wins, as in NumPy; the compiler turns them into vector reductions. */
#ifdef __clang__
static inline float dt_max_stepf(float a, float b) { return __builtin_elementwise_maximum(a, b); }
static inline float dt_min_stepf(float a, float b) { return __builtin_elementwise_minimum(a, b); }
static inline double dt_max_stepd(double a, double b) { return __builtin_elementwise_maximum(a, b); }
static inline double dt_min_stepd(double a, double b) { return __builtin_elementwise_minimum(a, b); }
#else
static inline float dt_max_stepf(float a, float b) { return a > b || a != a ? a : b; }
static inline float dt_min_stepf(float a, float b) { return a < b || a != a ? a : b; }
static inline double dt_max_stepd(double a, double b) { return a > b || a != a ? a : b; }
static inline double dt_min_stepd(double a, double b) { return a < b || a != a ? a : b; }
#endif
static inline double dt_maxd(double a, double b) { double m = a < b ? b : a; return b != b ? b : m; }
static inline double dt_mind(double a, double b) { double m = b < a ? b : a; return b != b ? b : m; }
static inline float dt_bf16_f32(uint16_t h) { return dt_fromf((int32_t)((uint32_t)h << 16)); }
static inline uint16_t dt_f32_bf16(float x) {
  uint32_t u = (uint32_t)dt_bitsf(x);
  uint32_t r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (uint16_t)(x != x ? (u >> 16) | 0x40u : r);
}
#ifdef DT_HARDWARE_F16
static inline float dt_f16_f32(uint16_t h) { union { uint16_t u; _Float16 f; } v = {h}; return (float)v.f; }
static inline uint16_t dt_f32_f16(float x) { union { _Float16 f; uint16_t u; } v = {(_Float16)x}; return v.u; }
#else
static inline float dt_f16_f32(uint16_t h) {
  uint32_t s = (uint32_t)(h & 0x8000u) << 16, e = (uint32_t)(h & 0x7fffu) << 13;
  float n = dt_fromf((int32_t)e) * 0x1p+112f;
  uint32_t b = (h & 0x7c00u) == 0x7c00u ? e | 0x7f800000u : (uint32_t)dt_bitsf(n);
  return dt_fromf((int32_t)(b | s));
}
static inline uint16_t dt_f32_f16(float x) {
  uint32_t u = (uint32_t)dt_bitsf(x), s = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  uint32_t normal = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13;
  uint32_t denormal = (uint32_t)dt_bitsf(dt_fromf((int32_t)a) + 0.5f) - 0x3f000000u;
  uint32_t r = a < 0x38800000u ? denormal : normal;
  r = a >= 0x477ff000u ? 0x7c00u : r;
  r = a > 0x7f800000u ? 0x7e00u | ((a >> 13) & 0x3ffu) : r;
  return (uint16_t)(r | s);
}
#endif
"""

_DOUBLE = """
static inline int64_t dt_bitsd(double x) { union { double f; int64_t i; } u = {x}; return u.i; }
static inline double dt_fromd(int64_t x) { union { int64_t i; double f; } u = {x}; return u.f; }
static inline double dt_expd(double x) {
  double c = x > 709.9 ? 709.9 : x;
  c = c < -708.0 ? -708.0 : c;
  double t = c * 0x1.71547652b82fep+0 + 0x1.8p+52;
  int64_t n = dt_bitsd(t) - 0x4338000000000000;
  double k = t - 0x1.8p+52;
  double r = c - k * 0x1.62e42feep-1;
  r = r - k * 0x1.a39ef35793c76p-33;
  double p = r * 5.45329877826513e-10 + 2.4177741282427453e-08;
  p = p * r + 2.761416760348344e-07;
  p = p * r + 2.756036259905728e-06;
  p = p * r + 2.480151217739464e-05;
  p = p * r + 1.984126617602974e-04;
  p = p * r + 1.3888888933330078e-03;
  p = p * r + 8.333333335144995e-03;
  p = p * r + 4.166666666654025e-02;
  p = p * r + 1.6666666666663651e-01;
  p = p * r + 5.000000000000019e-01;
  p = p * (r * r) + r;
  p = p + 1.0;
  double y = p * dt_fromd((n - 1 + 1023) << 52) * 2.0;
  return x != x ? x : y;
}
static inline double dt_logd(double x) {
  int64_t tiny = x < 0x1p-1022;
  double y = tiny ? x * 0x1p+54 : x;
  int64_t b = dt_bitsd(y) - 0x3fe6a09e667f3bcd;
  /* The exponent fits 12 bits: convert through int32, which vectorises everywhere. */
  double e = (double)(int32_t)(b >> 52) - (tiny ? 54.0 : 0.0);
  double m = dt_fromd((b & 0x000fffffffffffff) + 0x3fe6a09e667f3bcd) - 1.0;
  double s = m / (2.0 + m);
  double z = s * s;
  double p = z * 5.0586432975714926e-02 + 6.78679575842308e-02;
  p = p * z + 7.686992764539392e-02;
  p = p * z + 9.091019682728144e-02;
  p = p * z + 1.1111109945112183e-01;
  p = p * z + 1.4285714291747592e-01;
  p = p * z + 1.99999999999865e-01;
  p = p * z + 3.3333333333333337e-01;
  double r = e * 0x1.a39ef35793c76p-33 + 2.0 * (s * z * p);
  r = r + 2.0 * s;
  r = r + e * 0x1.62e42feep-1;
  r = x == __builtin_inf() ? x : r;
  r = x == 0.0 ? -__builtin_inf() : r;
  r = x < 0.0 ? __builtin_nan("") : r;
  return x != x ? x : r;
}
static inline double dt_log1pd(double x) {
  double u = 1.0 + x;
  double d = u - 1.0;
  double r = dt_logd(u) * (x / d);
  r = d == 0.0 ? x : r;
  return u == __builtin_inf() ? u : r;
}
static inline double dt_reduce_pio2(double x, int32_t *quadrant) {
  double t = x * 0x1.45f306dc9c883p-1 + 0x1.8p+52;
  *quadrant = (int32_t)dt_bitsd(t);
  double k = t - 0x1.8p+52;
  double r = x - k * 0x1.921fb5p+0;
  return r - k * 0x1.110b4611a6263p-26;
}
static inline double dt_sin_poly(double r) {
  double z = r * r;
  double p = z * -2.4793413165216802e-08 + 2.7555855747580296e-06;
  p = p * z - 1.9841266459300004e-04;
  p = p * z + 8.333333330597163e-03;
  p = p * z - 1.6666666666663127e-01;
  return p * z * r + r;
}
static inline double dt_cos_poly(double r) {
  double z = r * r;
  double p = z * 2.069184178704696e-09 - 2.7556272802043463e-07;
  p = p * z + 2.480158488282675e-05;
  p = p * z - 1.3888888886931538e-03;
  p = p * z + 4.1666666666664125e-02;
  return p * z * z - 0.5 * z + 1.0;
}
static inline double dt_sin_quadrant(double r, int32_t q) {
  double s = (q & 1) ? dt_cos_poly(r) : dt_sin_poly(r);
  return (q & 2) ? -s : s;
}
static inline float dt_sinf(float x) {
  int32_t q;
  double r = dt_reduce_pio2(x, &q);
  return x == 0.0f ? x : (float)dt_sin_quadrant(r, q);
}
static inline float dt_cosf(float x) {
  int32_t q;
  double r = dt_reduce_pio2(x, &q);
  return (float)dt_sin_quadrant(r, q + 1);
}
static inline float dt_tanf(float x) {
  int32_t q;
  double r = dt_reduce_pio2(x, &q);
  double s = dt_sin_poly(r), c = dt_cos_poly(r);
  return x == 0.0f ? x : (float)((q & 1) ? -c / s : s / c);
}
/* Signs are copied as floats: LLVM moves a copysign of doubles behind a later rounding to f16, which
   needs a library call. */
static inline double dt_atan_absd(double a) {
  int32_t large = a > 2.414213562373095, middle = a > 0.4142135623730951;
  double w = large ? -1.0 / a : middle ? (a - 1.0) / (a + 1.0) : a;
  double o = large ? 0x1.921fb54442d18p+0 : middle ? 0x1.921fb54442d18p-1 : 0.0;
  double z = w * w;
  double p = z * -2.696706796802867e-02 + 5.151870112588543e-02;
  p = p * z - 6.54654151032583e-02;
  p = p * z + 7.680465413521205e-02;
  p = p * z - 9.090213764726034e-02;
  p = p * z + 1.1111088005040236e-01;
  p = p * z - 1.428571389946427e-01;
  p = p * z + 1.999999999750861e-01;
  p = p * z - 3.3333333333330684e-01;
  return o + (p * z * w + w);
}
static inline double dt_atand(double x) { return __builtin_copysign(dt_atan_absd(x < 0 ? -x : x), x); }
static inline float dt_atanf(float x) {
  return x != x ? x : __builtin_copysignf((float)dt_atan_absd(x < 0 ? -x : x), x);
}
static inline float dt_asinf(float x) {
  double d = x;
  double r = dt_atand(d / __builtin_sqrt((1.0 - d) * (1.0 + d)));
  return !(x >= -1.0f && x <= 1.0f) ? __builtin_nanf("") : x == 0.0f ? x : (float)r;
}
static inline float dt_acosf(float x) {
  double d = x;
  double r = 2.0 * dt_atand(__builtin_sqrt((1.0 - d) / (1.0 + d)));
  return !(x >= -1.0f && x <= 1.0f) ? __builtin_nanf("") : (float)r;
}
static inline float dt_sinhf(float x) {
  double d = x, a = d < 0 ? -d : d, z = d * d;
  double e = dt_expd(a);
  double small = d + d * z * (1.0 / 6 + z * (1.0 / 120 + z * (1.0 / 5040 + z * (1.0 / 362880))));
  double large = __builtin_copysign(0.5 * (e - 1.0 / e), d);
  return (float)(a < 0.5 ? small : large);
}
static inline float dt_coshf(float x) {
  double e = dt_expd(x < 0 ? -(double)x : (double)x);
  return (float)(0.5 * (e + 1.0 / e));
}
static inline float dt_asinhf(float x) {
  double d = x, a = d < 0 ? -d : d;
  double r = dt_log1pd(a + a * a / (1.0 + __builtin_sqrt(1.0 + a * a)));
  return __builtin_isinf(x) ? x : __builtin_copysignf((float)r, x);
}
static inline float dt_acoshf(float x) {
  double t = (double)x - 1.0;
  double r = dt_log1pd(t + __builtin_sqrt(2.0 * t + t * t));
  return x < 1.0f ? __builtin_nanf("") : (float)r;
}
static inline float dt_atanhf(float x) {
  double d = x, a = d < 0 ? -d : d;
  double r = 0.5 * dt_log1pd(2.0 * a / (1.0 - a));
  r = a > 1.0 ? __builtin_nan("") : a == 1.0 ? __builtin_inf() : r;
  return __builtin_copysignf((float)r, x);
}
static inline float dt_powf(float x, float y) {
  double a = x < 0 ? -(double)x : (double)x, w = y;
  double r = dt_expd(w * dt_logd(a));
  double half = w * 0.5;
  int32_t integral = dt_floord(w) == w;
  int32_t odd = integral & (dt_floord(half) != half);
  r = a == 0.0 ? (w < 0 ? __builtin_inf() : 0.0) : r;
  r = (a == 1.0) & (integral | (x > 0.0f)) ? 1.0 : r;
  r = __builtin_isinf(y) ? ((a == 1.0) ? 1.0 : ((a > 1.0) == (y > 0)) ? __builtin_inf() : 0.0) : r;
  r = (x < 0.0f) & !integral & !__builtin_isinf(x) & !__builtin_isinf(y) ? __builtin_nan("") : r;
  int32_t negative = (dt_bitsf(x) < 0) & odd;
  r = negative ? -r : r;
  r = (x != x) | (y != y) ? __builtin_nan("") : r;
  return (y == 0.0f) | (x == 1.0f) ? 1.0f : (float)r;
}
static inline double dt_truncd(double x) {
  return __builtin_copysign(dt_floord(x < 0 ? -x : x), x);
}
static inline float dt_fmodf(float x, float y) {
  double a = x, b = y;
  double q = dt_truncd(a / b);
  double r = a - q * b;
  double m = b < 0 ? -b : b, s = r < 0 ? -r : r;
  int32_t wrong = (r != 0.0) & ((r < 0) != (a < 0));
  r = wrong ? r + __builtin_copysign(m, a) : r;
  s = r < 0 ? -r : r;
  r = s >= m ? r - __builtin_copysign(m, a) : r;
  r = __builtin_isinf(y) & !__builtin_isinf(x) ? a : r;
  return (y == 0.0f) | __builtin_isinf(x) ? __builtin_nanf("") : __builtin_copysignf((float)r, x);
}
"""

_HEAD = """#ifndef DT_PRELUDE
#define DT_PRELUDE
typedef __INT8_TYPE__ int8_t; typedef __UINT8_TYPE__ uint8_t;
typedef __INT16_TYPE__ int16_t; typedef __UINT16_TYPE__ uint16_t;
typedef __INT32_TYPE__ int32_t; typedef __UINT32_TYPE__ uint32_t;
typedef __INT64_TYPE__ int64_t; typedef __UINT64_TYPE__ uint64_t;
#ifdef __clang__
#define DT_PLAIN
#define DT_REASSOC _Pragma("clang fp reassociate(on)")
#else
#define DT_PLAIN __attribute__((optimize("no-tree-loop-distribute-patterns")))
#define DT_REASSOC
#endif
/* The compiler calls these for large copies and zeroed arrays; hidden, so each object has its own. */
#define DT_LIBC __attribute__((weak, used, visibility("hidden"))) DT_PLAIN
DT_LIBC void *memset(void *d, int c, __SIZE_TYPE__ n) {
  for (__SIZE_TYPE__ i = 0; i < n; i++) ((volatile char *)d)[i] = (char)c;
  return d;
}
DT_LIBC void *memcpy(void *d, const void *s, __SIZE_TYPE__ n) {
  for (__SIZE_TYPE__ i = 0; i < n; i++) ((volatile char *)d)[i] = ((const char *)s)[i];
  return d;
}
DT_LIBC void *memmove(void *d, const void *s, __SIZE_TYPE__ n) {
  if ((char *)d <= (const char *)s) return memcpy(d, s, n);
  for (__SIZE_TYPE__ i = n; i > 0; i--) ((volatile char *)d)[i - 1] = ((const char *)s)[i - 1];
  return d;
}
/* Sums in the order that the vector unit likes; one thread computes a whole sum, so it is fixed. */
static inline float dt_sum_stepf(float a, float b) { DT_REASSOC return a + b; }
static inline double dt_sum_stepd(double a, double b) { DT_REASSOC return a + b; }
static inline float dt_prod_stepf(float a, float b) { DT_REASSOC return a * b; }
static inline double dt_prod_stepd(double a, double b) { DT_REASSOC return a * b; }
static inline int64_t dt_mini(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t dt_maxi(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t dt_floordiv(int64_t a, int64_t b) { int64_t q = a / b; return q * b != a && (a < 0) != (b < 0) ? q - 1 : q; }
static inline int64_t dt_floormod(int64_t a, int64_t b) { return a - dt_floordiv(a, b) * b; }
"""


def _vector(lanes: int) -> str:
    types = _VECTOR_TYPES.replace("BYTES", str(4 * lanes)).replace("LIST", ", ".join("x" * lanes))
    types = types.replace("vNf", f"v{lanes}f").replace("vNi", f"v{lanes}i").replace("< N;", f"< {lanes};")
    return types + _instance(f"v{lanes}f", f"v{lanes}i", f"_v{lanes}f", f"(v{lanes}i)")


def _instance(float_type: str, int_type: str, suffix: str, compare: str) -> str:
    text = _TEMPLATE.replace("CMP(", f"{compare}(").replace("$", suffix)
    return _typed(text, float_type, int_type)


def _typed(text: str, float_type: str, int_type: str) -> str:
    out = []
    for line in text.splitlines():
        for short, full in (("F", float_type), ("I", int_type)):
            for before, after in ((f"inline {short} ", f"inline {full} "), (f"({short} ", f"({full} "),
                                  (f", {short} ", f", {full} ")):  # fmt: skip
                line = line.replace(before, after)
            if line.startswith(f"  {short} "):
                line = f"  {full} {line[4:]}"
        out.append(line)
    return "\n".join(out)


def prelude(target: Target, source: str | None = None) -> str:
    """The C text that stands in front of every kernel of a translation unit for `target`.

    Given the `source` that follows, vector widths and the functions in double precision that it does not
    mention are left out, which saves most of the compiler's fixed time. The text is guarded, so that a
    unit may hold it several times.
    """
    cpu = CpuTarget.of(target)
    widths = [4, 8, 16] if cpu.arch == "x86_64" else [4]
    lanes = [n for n in widths if n <= max(4, cpu.vector_floats)]
    double = True
    if source is not None:
        lanes = [n for n in lanes if f"v{n}f" in source]
        double = not _DOUBLE_NAMES.isdisjoint(_NAME.findall(source))
    return _prelude(cpu.has_f16_conversion, tuple(lanes), double)


_NAME = re.compile(r"dt_\w+")
_DOUBLE_NAMES = frozenset(_NAME.findall(_DOUBLE)) - frozenset(_NAME.findall(_SCALAR_TYPES + _NARROW))


@functools.cache
def _prelude(hardware_f16: bool, lanes: tuple[int, ...], double: bool) -> str:
    return "\n".join(
        [
            "#define DT_HARDWARE_F16\n" if hardware_f16 else "",
            _HEAD + _SCALAR_TYPES + _instance("float", "int32_t", "f", "-"),
            *(_vector(n) for n in lanes),
            _NARROW + (_DOUBLE if double else "") + "#endif\n",
        ]
    )
