// Floats to int8 codes, and integer sums back to floats.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {  // each library has its own copy, made for its flags

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

// The caller's step, or without one the smallest 2**e, e >= -126, with limit * 2**e >= the largest magnitude. NaN where
// the magnitudes hold a NaN, or an infinity that has no such step: it turns every output that it scales into NaN.
inline float step_of(int32_t largest, const float* step, long limit) {
    if (step) return largest > kInfinity ? float_of(kMagnitude) : *step;
    if (largest >= kInfinity) return float_of(kMagnitude);
    // With limit = 1.g * 2**l, m = 1.f * 2**k wants e = k - l, and one more where f > g: adding carries into it then.
    constexpr int32_t kFraction = 0x7fffff, kOne = 1 << 23;
    const int32_t bits = bits_of(static_cast<float>(limit)), least = kOne;
    const int32_t power = (largest + (kFraction - (bits & kFraction))) & kInfinity;
    const int32_t wanted = power - ((bits & kInfinity) - bits_of(1.0f));
    return float_of(wanted > least ? wanted : least);
}

// Codes in [-limit - 1, limit], moved up by `offset`. Adding 1.5 * 2**23 and the offset, which is even, leaves the nearest
// integer, ties to even, in the low bits of the float.
template <typename Code>
void quantise(const float* __restrict x, long count, float step, long limit, int offset, Code* __restrict codes) {
    const float inverse = 1.0f / step, high = static_cast<float>(limit), low = -high - 1.0f;
    const float move = 12582912.0f + static_cast<float>(offset);
    for (long i = 0; i < count; ++i) {
        float value = x[i] * inverse;
        value = value > high ? high : value;
        value = value < low ? low : value;
        codes[i] = static_cast<Code>(bits_of(value + move));
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

}  // namespace
