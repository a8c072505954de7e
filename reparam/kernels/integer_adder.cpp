// Adder convolutions on a CPU: int8 codes of float32 activations, int8 weights on the same grid, int32 sums.
//
//     y[p, o] = -(sum_k |w[o, k] - codes[p, k]|) * (step * scale[o]) + bias[o]
//
// One instruction takes eight absolute differences of unsigned bytes and adds them up, so codes and weights are moved up
// by 128, and weights are packed as (groups, panels of 8 outputs, octets of inputs, 8, 8).
// Compiled on first use by native.py; the interface is plain C and knows no torch. integer_reference.py gives the same
// bits.

#include "integer_codes.h"
#include "integer_sweep.h"
#include "integer_window.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

int32_t minus_magnitude(int32_t difference) { return difference < 0 ? difference : -difference; }

struct Differences {
    typedef uint8_t Code, Weight;
    static constexpr int kGroup = 8, kPanel = 8, kHead = 0, kOffset = 128;
    static int64_t octet(const uint8_t* codes) {
        int64_t octet;
        std::memcpy(&octet, codes, sizeof octet);
        return octet;
    }

#if defined(__AVX512BW__)
    static constexpr int kLanes = 8, kRows = 12, kPanels = 2;
    typedef __m512i Sums;
    static Sums start(const uint8_t*, int) { return _mm512_setzero_si512(); }
    static Sums load(const uint8_t* weights) { return _mm512_loadu_si512(weights); }
    static Sums spread(const uint8_t* codes) { return _mm512_set1_epi64(octet(codes)); }
    static Sums add(Sums sums, Sums weights, Sums codes) {
        return _mm512_sub_epi64(sums, _mm512_sad_epu8(weights, codes));
    }
    static void store(int32_t* to, Sums sums) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi64_epi32(sums));
    }
#elif defined(__AVX2__)
    static constexpr int kLanes = 4, kRows = 6, kPanels = 1;
    typedef __m256i Sums;
    static Sums start(const uint8_t*, int) { return _mm256_setzero_si256(); }
    static Sums load(const uint8_t* weights) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights)); }
    static Sums spread(const uint8_t* codes) { return _mm256_set1_epi64x(octet(codes)); }
    static Sums add(Sums sums, Sums weights, Sums codes) {
        return _mm256_sub_epi64(sums, _mm256_sad_epu8(weights, codes));
    }
    static void store(int32_t* to, Sums sums) {
        const __m256i low = _mm256_permutevar8x32_epi32(sums, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(low));
    }
#else
    static constexpr int kLanes = 8, kRows = 2, kPanels = 1;
    struct Sums {
        int32_t lane[kLanes];
    };
    static Sums start(const uint8_t*, int) { return Sums{}; }
    static const uint8_t* load(const uint8_t* weights) { return weights; }
    static const uint8_t* spread(const uint8_t* codes) { return codes; }
    static Sums add(Sums sums, const uint8_t* weights, const uint8_t* codes) {
        for (int i = 0; i < kLanes; ++i)
            for (int k = 0; k < kGroup; ++k) sums.lane[i] += minus_magnitude(weights[i * kGroup + k] - codes[k]);
        return sums;
    }
    static void store(int32_t* to, const Sums& sums) { std::memcpy(to, sums.lane, sizeof sums.lane); }
#endif
};

}  // namespace

// `sizes` are those of a Window, in its order.
extern "C" void reparam_integer_adder_conv2d(const int8_t* codes, const float* steps, const uint8_t* weight,
                                             const float* scale, const float* bias, float* y, const long* sizes,
                                             int threads) {
    convolve<Differences>(codes, steps, weight, {scale, bias}, y, Window::of(sizes), threads);
}

extern "C" void reparam_integer_adder_depthwise(const int8_t* codes, const float* steps, const uint8_t* weight,
                                                const float* scale, const float* bias, float* y, const long* sizes,
                                                int threads) {
    convolve_depthwise(codes, steps, weight, {scale, bias}, y, Window::of(sizes), threads,
                       [](int32_t own, int32_t code) { return minus_magnitude(own - 128 - code); });
}
