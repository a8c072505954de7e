// Convolutions of int8 codes: the rows that output pixels read, for any kernel of integer_sweep.h.
//
// A kernel also says what a code becomes in its rows, `code(int8)`, and what a weight and a code add, `term`. Pixels
// outside of the image have code 0.

#pragma once

#include "integer_codes.h"
#include "integer_sweep.h"

struct Window {  // sizes of a convolution, height before width; inputs and outputs are those of one group
    long batch, image[2], kernel[2], output[2], stride[2], padding[2], dilation[2], inputs, outputs, groups;

    static Window of(const long* sizes) {
        Window window;
        std::memcpy(&window, sizes, sizeof window);
        return window;
    }
    long pixels() const { return output[0] * output[1]; }
    long taps() const { return kernel[0] * kernel[1]; }

    // Calls `visit(tap, offset)` for each tap of output pixel `at` of the batch; offset -1 lies outside of the image.
    template <typename Visit>
    void each_tap(long at, const Visit& visit) const {
        const long b = at / pixels(), oh = at / output[1] % output[0], ow = at % output[1];
        for (long i = 0; i < kernel[0]; ++i)
            for (long j = 0; j < kernel[1]; ++j) {
                const long h = oh * stride[0] - padding[0] + i * dilation[0];
                const long w = ow * stride[1] - padding[1] + j * dilation[1];
                const bool inside = h >= 0 && h < image[0] && w >= 0 && w < image[1];
                visit(i * kernel[1] + j, inside ? ((b * image[0] + h) * image[1] + w) * groups * inputs : -1);
            }
    }
};

// Writes what one output pixel reads, and what fills up the last group of its row.
template <typename Kernel>
void gather(const int8_t* codes, const Window& window, const Block<Kernel>& block, long row) {
    const long inputs = window.inputs;
    typename Kernel::Code* to = block.codes + row * block.stride;
    window.each_tap(block.first + row, [&](long tap, long offset) {
        const int8_t* from = codes + offset + block.part * inputs;
        for (long i = 0; i < inputs; ++i) to[tap * inputs + i] = Kernel::code(offset < 0 ? 0 : from[i]);
    });
    for (long i = window.taps() * inputs; i < block.stride; ++i) to[i] = Kernel::code(0);
}

// codes (batch, height, width, groups * inputs), steps (batch), weight (groups, packed), y (batch, out_h, out_w, groups *
// outputs).
template <typename Kernel>
void convolve(const int8_t* codes, const float* steps, const typename Kernel::Code* weight, const Epilogue& epilogue,
              float* y, const Window& window, int threads) {
    const Extent<Kernel> extent{window.batch * window.pixels(), window.taps() * window.inputs, window.outputs,
                                window.groups};
    sweep(
        weight, extent, threads,
        [&](const Block<Kernel>& block) {
            for (long row = 0; row < block.rows; ++row) {
                block.steps[row] = steps[(block.first + row) / window.pixels()];
                gather(codes, window, block, row);
            }
        },
        [&](const Block<Kernel>& block, long row, long output, long count, const int32_t* sums) {
            const long channel = block.part * window.outputs + output;
            float* to = y + (block.first + row) * window.groups * window.outputs + channel;
            epilogue(to, block.steps[row], channel, count, sums);
        });
}

// The same with one input and one output a group: lanes lie along the groups; weight (taps, groups).
template <typename Kernel>
void convolve_depthwise(const int8_t* codes, const float* steps, const typename Kernel::Code* weight,
                        const Epilogue& epilogue, float* y, const Window& window, int threads) {
    constexpr long kChannels = 32;
    static const int8_t outside[kChannels] = {};
    const long groups = window.groups;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long at = 0; at < window.batch * window.pixels(); ++at)
        for (long first = 0; first < groups; first += kChannels) {
            const long count = groups - first < kChannels ? groups - first : kChannels;
            uint32_t sums[kChannels] = {};  // may wrap on their way
            window.each_tap(at, [&](long tap, long offset) {
                const int8_t* from = offset < 0 ? outside : codes + offset + first;
                const typename Kernel::Code* weights = weight + tap * groups + first;
                for (long c = 0; c < count; ++c) sums[c] += static_cast<uint32_t>(Kernel::term(weights[c], from[c]));
            });
            epilogue(y + at * groups + first, steps[at / window.pixels()], first, count,
                     reinterpret_cast<const int32_t*>(sums));
        }
}
