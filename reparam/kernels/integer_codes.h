// Floats to int8 codes, and integer sums back to floats.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

inline int32_t bits_of(float value) {
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(int32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

constexpr int32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;

// Bits of the largest magnitude; as integers, those of an infinity and of NaNs lie above all others, in this order.
inline int32_t largest_magnitude(const float* x, long count) {
    int32_t largest = 0;
    for (long i = 0; i < count; ++i) {
        const int32_t magnitude = bits_of(x[i]) & kMagnitude;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

// The caller's step, or without one the smallest 2**e, e >= -126, with 127 * 2**e >= the largest magnitude. NaN where the
// magnitudes hold a NaN, or an infinity that has no such step: it turns every output that it scales into NaN.
inline float step_of(int32_t largest, const float* step) {
    if (step) return largest > kInfinity ? float_of(kMagnitude) : *step;
    if (largest >= kInfinity) return float_of(kMagnitude);
    // m = 1.f * 2**k wants e = k - 6, and one more above 1.984375 * 2**k = 127 * 2**(k - 6).
    const int32_t power = (largest + 0x1ffff) & kInfinity, six = 6 << 23, least = 1 << 23;
    return float_of(power - six > least ? power - six : least);
}

// Adding 1.5 * 2**23 leaves the nearest integer, ties to even, in the low bits of the float.
template <typename Code>
void quantise(const float* __restrict x, long count, float step, Code* __restrict codes) {
    const float inverse = 1.0f / step;
    for (long i = 0; i < count; ++i) {
        float value = x[i] * inverse;
        value = value > 127.0f ? 127.0f : value;
        value = value < -128.0f ? -128.0f : value;
        codes[i] = static_cast<Code>(bits_of(value + 12582912.0f));
    }
}

struct Epilogue {
    const float *scale, *bias;  // of each output; bias may be null

    // Writes `count` outputs of one row, the first of which is `output`.
    void operator()(float* y, float step, long output, long count, const int32_t* sums) const {
        // Whole panels have their own loops: the others spend more on finding out how to begin than on their numbers.
        if (count == 16)
            write(y, step, scale + output, bias ? bias + output : nullptr, std::integral_constant<long, 16>(), sums);
        else if (count == 8)
            write(y, step, scale + output, bias ? bias + output : nullptr, std::integral_constant<long, 8>(), sums);
        else
            write(y, step, scale + output, bias ? bias + output : nullptr, count, sums);
    }

   private:
    template <typename Count>
    static void write(float* __restrict y, float step, const float* __restrict scale, const float* __restrict bias,
                      Count count, const int32_t* __restrict sums) {
        if (bias)
            for (long i = 0; i < count; ++i) y[i] = static_cast<float>(sums[i]) * (step * scale[i]) + bias[i];
        else
            for (long i = 0; i < count; ++i) y[i] = static_cast<float>(sums[i]) * (step * scale[i]);
    }
};
