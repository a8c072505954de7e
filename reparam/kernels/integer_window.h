// Convolutions of codes: the rows that output pixels read, for any kernel of integer_sweep.h.
//
// Images are codes of type `Image`, int8 or int16; pixels outside of them have code 0.

#pragma once

#include <algorithm>

#include "integer_codes.h"
#include "integer_sweep.h"

namespace {  // each library has its own copy, made for its flags

struct Window {  // sizes of a convolution, height before width; inputs and outputs are those of one group
    long batch, image[2], kernel[2], output[2], stride[2], padding[2], dilation[2], inputs, outputs, groups;

    static Window of(const long* sizes) {
        Window window;
        std::memcpy(&window, sizes, sizeof window);
        return window;
    }
    long pixels() const { return output[0] * output[1]; }
    long taps() const { return kernel[0] * kernel[1]; }

};

struct Corner {  // where an output pixel's window begins, maybe outside of the image
    const Window& window;
    long image, top, left;

    Corner(const Window& of, long at)
        : window(of),
          image(at / of.pixels()),
          top(at / of.output[1] % of.output[0] * of.stride[0] - of.padding[0]),
          left(at % of.output[1] * of.stride[1] - of.padding[1]) {}

    // The offset in the images of what tap (i, j) reads; -1 outside of the image.
    long offset(long i, long j) const {
        const long h = top + i * window.dilation[0], w = left + j * window.dilation[1];
        const bool inside = h >= 0 && h < window.image[0] && w >= 0 && w < window.image[1];
        return inside ? ((image * window.image[0] + h) * window.image[1] + w) * window.groups * window.inputs : -1;
    }
};

// Writes what one output pixel reads, and what fills up the last group of its row.
template <typename Kernel, typename Image>
void gather(const Image* codes, const Window& window, const Block<Kernel>& block, long row) {
    // Neighbours in a row of the kernel that are neighbours in the image are copied at once.
    const long joined = window.groups == 1 && window.dilation[1] == 1 ? window.kernel[1] : 1;
    typename Kernel::Code* to = block.codes + row * block.stride;
    const typename Kernel::Code* end = to + block.stride;
    const Corner corner(window, block.first + row);
    for (long i = 0; i < window.kernel[0]; ++i)
        for (long j = 0; j < window.kernel[1];) {
            const long offset = corner.offset(i, j);
            long taps = 1;
            while (taps < joined - j && (corner.offset(i, j + taps) < 0) == (offset < 0)) ++taps;
            const long count = taps * window.inputs;
            if (offset < 0)
                std::fill(to, to + count, static_cast<typename Kernel::Code>(Kernel::kOffset));
            else
                copy_codes<Kernel>(codes + offset + block.part * window.inputs, count, to);
            to += count, j += taps;
        }
    while (to < end) *to++ = static_cast<typename Kernel::Code>(Kernel::kOffset);
}

// codes (batch, height, width, groups * inputs), steps (batch), weight (groups, packed), y (batch, out_h, out_w, groups *
// outputs).
template <typename Kernel, typename Image>
void convolve(const Image* codes, const float* steps, const typename Kernel::Weight* weight, const Epilogue& epilogue,
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

// Sums of `count` groups, at most 16, beginning with `first`.
template <typename Term, typename Image, typename Weight, typename Count>
void add_taps(const std::vector<const Image*>& taps, const Weight* weight, long groups, long first, Count count,
              const Term& term, int32_t* to) {
    uint32_t sums[16] = {};  // may wrap on their way
    for (std::size_t tap = 0; tap < taps.size(); ++tap) {
        const Image* __restrict from = taps[tap] + first;
        const Weight* __restrict weights = weight + tap * groups + first;
        for (long c = 0; c < count; ++c) sums[c] += static_cast<uint32_t>(term(weights[c], from[c]));
    }
    std::memcpy(to, sums, sizeof sums);
}

// The same with one input and one output a group: lanes lie along the groups; weight (taps, groups). `term` is what a
// weight and a code add.
template <typename Term, typename Image, typename Weight>
void convolve_depthwise(const Image* codes, const float* steps, const Weight* weight, const Epilogue& epilogue, float* y,
                        const Window& window, int threads, const Term& term) {
    constexpr long kChannels = 16;
    const long groups = window.groups;
    const std::vector<Image> outside(groups);
#pragma omp parallel num_threads(threads)
    {
        std::vector<const Image*> taps(window.taps());
#pragma omp for schedule(static)
        for (long at = 0; at < window.batch * window.pixels(); ++at) {
            const Corner corner(window, at);
            for (long i = 0; i < window.kernel[0]; ++i)
                for (long j = 0; j < window.kernel[1]; ++j) {
                    const long offset = corner.offset(i, j);
                    taps[i * window.kernel[1] + j] = offset < 0 ? outside.data() : codes + offset;
                }
            for (long first = 0; first < groups; first += kChannels) {
                const long count = groups - first < kChannels ? groups - first : kChannels;
                alignas(64) int32_t sums[kChannels];
                if (count == kChannels)
                    add_taps(taps, weight, groups, first, std::integral_constant<long, kChannels>(), term, sums);
                else
                    add_taps(taps, weight, groups, first, count, term, sums);
                epilogue(y + at * groups + first, steps[corner.image], first, count, sums);
            }
        }
    }
}

}  // namespace
