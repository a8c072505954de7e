// Integer matrix products and convolutions on a CPU: int8 codes of float32 activations, int16 weights, int32 sums.
//
//     y[m, o] = (sum_k codes[m, k] * w[o, k]) * (step[m] * scale[o]) + bias[o]
//
// One instruction multiplies pairs of int16 and adds the two products, so codes are widened to int16 and weights packed
// as (panels of 16 outputs, pairs of inputs, 16, 2).
// Compiled on first use by native.py; the interface is plain C and knows no torch. integer_reference.py gives the same
// bits.

#include "integer_codes.h"
#include "integer_sweep.h"
#include "integer_window.h"

namespace {

struct Products {
    typedef int16_t Code;
    static constexpr int kGroup = 2, kPanel = 16;
    static int16_t code(int8_t code) { return code; }
    static int32_t term(int16_t weight, int8_t code) { return weight * code; }
    static int32_t both(const int16_t* codes) {
        int32_t both;
        std::memcpy(&both, codes, sizeof both);
        return both;
    }

#if defined(__AVX512BW__)
    static constexpr int kLanes = 16, kRows = 12, kPanels = 2;
    typedef __m512i Sums, Group;
    static Group load(const int16_t* weights) { return _mm512_loadu_si512(weights); }
    static Group spread(const int16_t* codes) { return _mm512_set1_epi32(both(codes)); }
    static Sums add(Sums sums, Group weights, Group codes) {
#if defined(__AVX512VNNI__)
        return _mm512_dpwssd_epi32(sums, weights, codes);
#else
        return _mm512_add_epi32(sums, _mm512_madd_epi16(weights, codes));
#endif
    }
    static void store(int32_t* to, Sums sums) { _mm512_storeu_si512(to, sums); }
#elif defined(__AVX2__)
    static constexpr int kLanes = 8, kRows = 6, kPanels = 1;
    typedef __m256i Sums, Group;
    static Group load(const int16_t* weights) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights)); }
    static Group spread(const int16_t* codes) { return _mm256_set1_epi32(both(codes)); }
    static Sums add(Sums sums, Group weights, Group codes) {
        return _mm256_add_epi32(sums, _mm256_madd_epi16(weights, codes));
    }
    static void store(int32_t* to, Sums sums) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), sums); }
#else
    // Loops over whole vectors, for the compiler to map. Sums may wrap on their way: unsigned, where that is defined.
    static constexpr int kLanes = 8, kRows = 4, kPanels = 1;
    struct Group {
        int16_t lane[2 * kLanes];
    };
    struct Sums {
        uint32_t lane[kLanes];
    };
    static Group load(const int16_t* weights) {
        Group group;
        std::memcpy(group.lane, weights, sizeof group.lane);
        return group;
    }
    static Group spread(const int16_t* codes) {
        Group group;
        for (int i = 0; i < 2 * kLanes; ++i) group.lane[i] = codes[i % 2];
        return group;
    }
    static Sums add(Sums sums, const Group& weights, const Group& codes) {
        for (int i = 0; i < kLanes; ++i)
            sums.lane[i] += static_cast<uint32_t>(weights.lane[2 * i] * codes.lane[2 * i] +
                                                  weights.lane[2 * i + 1] * codes.lane[2 * i + 1]);
        return sums;
    }
    static void store(int32_t* to, const Sums& sums) { std::memcpy(to, sums.lane, sizeof sums.lane); }
#endif
};

}  // namespace

// codes (rows, inputs), weight packed, y (rows, outputs).
extern "C" void reparam_integer_matmul(const int8_t* codes, const int16_t* weight, int32_t* y, long rows, long inputs,
                                       long outputs, int threads) {
    sweep(
        weight, Extent<Products>{rows, inputs, outputs, 1}, threads,
        [&](const Block<Products>& block) {
            for (long row = 0; row < block.rows; ++row)
                for (long i = 0; i < inputs; ++i)
                    block.codes[row * block.stride + i] = codes[(block.first + row) * inputs + i];
        },
        [&](const Block<Products>& block, long row, long output, long count, const int32_t* sums) {
            std::memcpy(y + (block.first + row) * outputs + output, sums, count * sizeof *sums);
        });
}

// x (rows, inputs), weight packed, y (rows, outputs); without a step, each row has its own.
extern "C" void reparam_integer_linear(const float* x, const int16_t* weight, const float* scale, const float* bias,
                                       const float* step, float* y, long rows, long inputs, long outputs, int threads) {
    const Epilogue epilogue{scale, bias};
    sweep(
        weight, Extent<Products>{rows, inputs, outputs, 1}, threads,
        [&](const Block<Products>& block) {
            for (long row = 0; row < block.rows; ++row) {
                const float* from = x + (block.first + row) * inputs;
                block.steps[row] = step_of(largest_magnitude(from, inputs), step);
                quantise(from, inputs, block.steps[row], block.codes + row * block.stride);
            }
        },
        [&](const Block<Products>& block, long row, long output, long count, const int32_t* sums) {
            epilogue(y + (block.first + row) * outputs + output, block.steps[row], output, count, sums);
        });
}

// x and codes (images, size), steps (images); without a step, each image has its own.
extern "C" void reparam_integer_quantise(const float* x, const float* step, int8_t* codes, float* steps, long images,
                                         long size, int threads) {
    constexpr long kPiece = 1 << 14;
    const long pieces = (size + kPiece - 1) / kPiece;
    std::vector<int32_t> largest(images * pieces);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for collapse(2)
        for (long image = 0; image < images; ++image)
            for (long piece = 0; piece < pieces; ++piece) {
                const long first = piece * kPiece, count = size - first < kPiece ? size - first : kPiece;
                largest[image * pieces + piece] = largest_magnitude(x + image * size + first, count);
            }
#pragma omp for
        for (long image = 0; image < images; ++image) {
            int32_t found = 0;
            for (long piece = 0; piece < pieces; ++piece)
                found = largest[image * pieces + piece] > found ? largest[image * pieces + piece] : found;
            steps[image] = step_of(found, step);
        }
#pragma omp for collapse(2)
        for (long image = 0; image < images; ++image)
            for (long piece = 0; piece < pieces; ++piece) {
                const long first = piece * kPiece, count = size - first < kPiece ? size - first : kPiece;
                quantise(x + image * size + first, count, steps[image], codes + image * size + first);
            }
    }
}

// `sizes` are those of a Window, in its order.
extern "C" void reparam_integer_conv2d(const int8_t* codes, const float* steps, const int16_t* weight, const float* scale,
                                       const float* bias, float* y, const long* sizes, int threads) {
    convolve<Products>(codes, steps, weight, {scale, bias}, y, Window::of(sizes), threads);
}

extern "C" void reparam_integer_depthwise(const int8_t* codes, const float* steps, const int16_t* weight,
                                          const float* scale, const float* bias, float* y, const long* sizes,
                                          int threads) {
    convolve_depthwise<Products>(codes, steps, weight, {scale, bias}, y, Window::of(sizes), threads);
}
