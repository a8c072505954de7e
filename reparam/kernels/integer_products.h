// What a tile of integer products does with its registers: kernels for integer_sweep.h, by what this machine has.
//
//     Words  int16 weights and codes, in pairs: exact for all int16
//     Bytes  int8 weights, codes moved up by 128 to unsigned bytes, in fours; a panel begins with what the move adds to
//            each sum, so that sums start there. Without VNNI two products are added in int16: exact for |w| <= 64,
//            as 2 * 255 * 64 < 2**15

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {  // each library has its own copy, made for its flags

template <typename CodeType, typename WeightType>
struct Products {
    typedef CodeType Code;
    typedef WeightType Weight;
    static constexpr int kGroup = 4 / sizeof(Code), kPanel = 16;

#if defined(__AVX512BW__)
    static constexpr int kLanes = 16, kRows = 12, kPanels = 2;
    typedef __m512i Sums;
    static Sums zero() { return _mm512_setzero_si512(); }
    static Sums load(const Weight* weights) { return _mm512_loadu_si512(weights); }
    static Sums spread(const Code* codes) { return _mm512_set1_epi32(word(codes)); }
    static void store(int32_t* to, Sums sums) { _mm512_storeu_si512(to, sums); }
#elif defined(__AVX2__)
    static constexpr int kLanes = 8, kRows = 6, kPanels = 1;
    typedef __m256i Sums;
    static Sums zero() { return _mm256_setzero_si256(); }
    static Sums load(const Weight* weights) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights)); }
    static Sums spread(const Code* codes) { return _mm256_set1_epi32(word(codes)); }
    static void store(int32_t* to, Sums sums) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), sums); }
#else
    // Loops over whole vectors, for the compiler to map. Sums may wrap on their way: unsigned, where that is defined.
    static constexpr int kLanes = 8, kRows = 4, kPanels = 1;
    struct Sums {
        uint32_t lane[kLanes];
    };
    static Sums zero() { return Sums{}; }
    static const Weight* load(const Weight* weights) { return weights; }
    static const Code* spread(const Code* codes) { return codes; }
    static Sums add(Sums sums, const Weight* weights, const Code* codes) {
        for (int i = 0; i < kLanes; ++i)
            for (int k = 0; k < kGroup; ++k)
                sums.lane[i] += static_cast<uint32_t>(weights[i * kGroup + k] * codes[k]);
        return sums;
    }
    static void store(int32_t* to, const Sums& sums) { std::memcpy(to, sums.lane, sizeof sums.lane); }
#endif

   private:
    static int32_t word(const Code* codes) {
        int32_t word;
        std::memcpy(&word, codes, sizeof word);
        return word;
    }
};

struct Words : Products<int16_t, int16_t> {
    static constexpr int kHead = 0, kOffset = 0;
    static Sums start(const int16_t*, int) { return zero(); }
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    static Sums add(Sums sums, Sums weights, Sums codes) { return _mm512_dpwssd_epi32(sums, weights, codes); }
#elif defined(__AVX512BW__)
    static Sums add(Sums sums, Sums weights, Sums codes) {
        return _mm512_add_epi32(sums, _mm512_madd_epi16(weights, codes));
    }
#elif defined(__AVXVNNI__)
    static Sums add(Sums sums, Sums weights, Sums codes) { return _mm256_dpwssd_avx_epi32(sums, weights, codes); }
#elif defined(__AVX2__)
    static Sums add(Sums sums, Sums weights, Sums codes) {
        return _mm256_add_epi32(sums, _mm256_madd_epi16(weights, codes));
    }
#endif
};

struct Bytes : Products<uint8_t, int8_t> {
    static constexpr int kHead = 1, kOffset = 128;
    static Sums start(const int8_t* head, int vector) {
        Sums sums;
        std::memcpy(&sums, head + vector * sizeof sums, sizeof sums);
        return sums;
    }
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
    static Sums add(Sums sums, Sums weights, Sums codes) { return _mm512_dpbusd_epi32(sums, codes, weights); }
#elif defined(__AVX512BW__)
    static Sums add(Sums sums, Sums weights, Sums codes) {
        const Sums pairs = _mm512_maddubs_epi16(codes, weights);
        return _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
    }
#elif defined(__AVXVNNI__)
    static Sums add(Sums sums, Sums weights, Sums codes) { return _mm256_dpbusd_avx_epi32(sums, codes, weights); }
#elif defined(__AVX2__)
    static Sums add(Sums sums, Sums weights, Sums codes) {
        const Sums pairs = _mm256_maddubs_epi16(codes, weights);
        return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
#endif
};

}  // namespace
