// The edit of T-DRS in one loop over the pairs, with the names of tdrs.py. A block of n rows of K keys has R rows of a
// head; a distance belongs to `each` heads.

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float as_float(int32_t i) { float x; memcpy(&x, &i, 4); return x; }
static inline int32_t as_int(float x) { int32_t i; memcpy(&i, &x, 4); return i; }

// 2^x for x <= 1, with a relative error of 2e-7; at least 2^-125, so that no number is subnormal, which is slow.
static inline float power_of_2(float x) {
    x = x < -125.f ? -125.f : x;
    float whole = floorf(x + .5f), f = x - whole, p = 1.535336188e-4f;
    p = p * f + 1.339887440e-3f;
    p = p * f + 9.618437358e-3f;
    p = p * f + 5.550332471e-2f;
    p = p * f + 2.402264791e-1f;
    p = p * f + 6.931472029e-1f;
    p = p * f + 1.f;
    return p * as_float(((int32_t)whole + 127) << 23);
}

// ln(1 + x) for x >= 0, with a relative error of 2e-7, also where x is small.
static inline float log_1_plus(float x) {
    int32_t bits = as_int(1.f + x), e = (bits - 0x3f3504f3) >> 23;
    float f = e ? as_float(bits - (int32_t)((uint32_t)e << 23)) - 1.f : x;
    float s = f / (2.f + f), z = s * s;
    return 2.f * s * (1.f + z * (.333333333f + z * (.2f + z * (.142857143f + z * .1111111f)))) + .693147181f * (float)e;
}

// The weight of a stage that is off is 0. `in_weights` is a constant wherever this is called, so that the loop is compiled
// for either value.
static inline void edit_row(const float *a, float *s, const float *d, float least, float c, float b, float minus_alpha,
                            float shift, float dc_weight, float re_weight, float copies, float sd, int in_weights,
                            int64_t K) {
    for (int64_t j = 0; j < K; j++) {
        float scale = s[j] + shift, t = d[j] / (scale > least ? scale : least);
        t *= t;
        float gain = dc_weight * power_of_2(c * t) + re_weight * power_of_2(minus_alpha * log_1_plus(b * t));
        s[j] = (in_weights ? log_1_plus(gain) : a[j] * gain) + copies * a[j] + sd * s[j];
    }
}

void edit(const float *A, float *sem_pos, const float *d, const float *least, const float *dc, const float *re,
          const float *power, float shift, float dc_weight, float re_weight, float copies, float sd, int in_weights,
          int64_t n, int64_t R, int64_t each, int64_t K) {
#pragma omp parallel for
    for (int64_t i = 0; i < n; i++) {
        const float *a = A + i * K, *distance = d + (i / (R * each) * R + i % R) * K;
        float *s = sem_pos + i * K;
        if (in_weights)
            edit_row(a, s, distance, least[i], dc[i], re[i], power[i], shift, dc_weight, re_weight, copies, sd, 1, K);
        else
            edit_row(a, s, distance, least[i], dc[i], re[i], power[i], shift, dc_weight, re_weight, copies, sd, 0, K);
    }
}
