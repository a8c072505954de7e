// Integer matrix products and convolutions on a CPU: int8 codes of float32 activations, int16 weights, int32 sums.
//
//     y[m, o] = (sum_k codes[m, k] * w[o, k]) * (step[m] * scale[o]) + bias[o]
//
// Weights are packed for one of the two kernels of integer_products.h; the width of a weight says which.
// Compiled on first use by native.py; the interface is plain C and knows no torch. integer_reference.py gives the same
// bits.

#include "integer_codes.h"
#include "integer_products.h"
#include "integer_sweep.h"
#include "integer_window.h"

namespace {

// Calls `run(kernel, weight)` with the kernel that a packed weight is for.
template <typename Run>
void with_kernel(const void* weight, long weight_bytes, const Run& run) {
    if (weight_bytes == 1)
        run(Bytes(), static_cast<const int8_t*>(weight));
    else
        run(Words(), static_cast<const int16_t*>(weight));
}

// Calls `run(codes)` with codes of their type.
template <typename Codes, typename Run>
void with_codes(Codes* codes, long code_bytes, const Run& run) {
    constexpr bool kConst = std::is_const<Codes>::value;
    typedef std::conditional_t<kConst, const int8_t, int8_t> Narrow;
    typedef std::conditional_t<kConst, const int16_t, int16_t> Wide;
    if (code_bytes == 1)
        run(static_cast<Narrow*>(codes));
    else
        run(static_cast<Wide*>(codes));
}

}  // namespace

// codes (rows, inputs), weight packed, y (rows, outputs).
extern "C" void reparam_integer_matmul(const int8_t* codes, const void* weight, int32_t* y, long rows, long inputs,
                                       long outputs, long weight_bytes, int threads) {
    with_kernel(weight, weight_bytes, [&](auto kernel, const auto* packed) {
        typedef decltype(kernel) Kernel;
        sweep(
            packed, Extent<Kernel>{rows, inputs, outputs, 1}, threads,
            [&](const Block<Kernel>& block) {
                for (long row = 0; row < block.rows; ++row)
                    copy_codes<Kernel>(codes + (block.first + row) * inputs, inputs, block.codes + row * block.stride);
            },
            [&](const Block<Kernel>& block, long row, long output, long count, const int32_t* sums) {
                int32_t* to = y + (block.first + row) * outputs + output;
                if (count == Kernel::kPanel)  // a size that is known is copied without a call
                    std::memcpy(to, sums, Kernel::kPanel * sizeof *sums);
                else
                    std::memcpy(to, sums, count * sizeof *sums);
            });
    });
}

// x (rows, inputs), weight packed, y (rows, outputs); without a step, each row has its own.
extern "C" void reparam_integer_linear(const float* x, const void* weight, const float* scale, const float* bias,
                                       const float* step, float* y, long rows, long inputs, long outputs, long limit,
                                       long weight_bytes, int threads) {
    const Epilogue epilogue{scale, bias};
    with_kernel(weight, weight_bytes, [&](auto kernel, const auto* packed) {
        typedef decltype(kernel) Kernel;
        sweep(
            packed, Extent<Kernel>{rows, inputs, outputs, 1}, threads,
            [&](const Block<Kernel>& block) {
                for (long row = 0; row < block.rows; ++row) {
                    const float* from = x + (block.first + row) * inputs;
                    block.steps[row] = step_of(largest_magnitude(from, inputs), step, limit);
                    quantise(from, inputs, block.steps[row], limit, Kernel::kOffset, block.codes + row * block.stride);
                }
            },
            [&](const Block<Kernel>& block, long row, long output, long count, const int32_t* sums) {
                epilogue(y + (block.first + row) * outputs + output, block.steps[row], output, count, sums);
            });
    });
}

// x and codes (images, size), steps (images); without a step, each image has its own.
extern "C" void reparam_integer_quantise(const float* x, const float* step, void* codes, float* steps, long images,
                                         long size, long limit, long code_bytes, int threads) {
    constexpr long kPiece = 1 << 14;
    const long pieces = (size + kPiece - 1) / kPiece;
    std::vector<int32_t> largest(images * pieces);
#pragma omp parallel for num_threads(threads)
    for (long at = 0; at < images * pieces; ++at) {
        const long first = at % pieces * kPiece, count = size - first < kPiece ? size - first : kPiece;
        largest[at] = largest_magnitude(x + at / pieces * size + first, count);
    }
    for (long image = 0; image < images; ++image) {
        int32_t found = 0;
        for (long piece = 0; piece < pieces; ++piece) found = std::max(found, largest[image * pieces + piece]);
        steps[image] = step_of(found, step, limit);
    }
    with_codes(codes, code_bytes, [&](auto* to) {
#pragma omp parallel for num_threads(threads)
        for (long at = 0; at < images * pieces; ++at) {
            const long first = at % pieces * kPiece, count = size - first < kPiece ? size - first : kPiece;
            const long place = at / pieces * size + first;
            quantise(x + place, count, steps[at / pieces], limit, 0, to + place);
        }
    });
}

// `sizes` are those of a Window, in its order.
extern "C" void reparam_integer_conv2d(const void* codes, const float* steps, const void* weight, const float* scale,
                                       const float* bias, float* y, const long* sizes, long code_bytes,
                                       long weight_bytes, int threads) {
    with_codes(codes, code_bytes, [&](const auto* image) {
        with_kernel(weight, weight_bytes, [&](auto kernel, const auto* packed) {
            convolve<decltype(kernel)>(image, steps, packed, {scale, bias}, y, Window::of(sizes), threads);
        });
    });
}

extern "C" void reparam_integer_depthwise(const void* codes, const float* steps, const int16_t* weight,
                                          const float* scale, const float* bias, float* y, const long* sizes,
                                          long code_bytes, int threads) {
    with_codes(codes, code_bytes, [&](const auto* image) {
        convolve_depthwise(image, steps, weight, {scale, bias}, y, Window::of(sizes), threads,
                           [](int32_t own, int32_t code) { return own * code; });
    });
}
