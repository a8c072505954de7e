// The adder convolution and its input gradient on a CPU, for channels-last float32 tensors.
//
//     y[p, o]  = -sum_k |w[o, k] - x[p, k]|
//     gx[q, c] = sum over the outputs p that read q, and o, of  g[p, o] * hardtanh(w[o, k] - x[q, c])
//
// Each product of a matrix multiplication is here a subtraction, an absolute value and an addition, so the shape of a
// fast matrix kernel carries over: a tile of a few pixels times a few vectors of channels stays in registers while the
// reduction streams through it. Vectors lie along the channels that are written, whatever the size of the image.
// Compiled on first use by native.py; the interface is plain C and knows no torch.

#include <cstdint>
#include <type_traits>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kGradientPixels = 3;  // by the number of registers, as measured
#else
constexpr int kLanes = 8;
constexpr int kGradientPixels = 1;
#endif

typedef float Vector __attribute__((vector_size(kLanes * 4), aligned(4)));
typedef int32_t Bits __attribute__((vector_size(kLanes * 4), aligned(4)));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }

inline Vector magnitude(Vector value) {
    return reinterpret_cast<Vector>(reinterpret_cast<Bits>(value) & 0x7fffffff);
}

// min(max(value, low), high); a NaN passes through.
inline Vector clamp(Vector value, Vector low, Vector high) {
    value = value < low ? low : value;
    return value > high ? high : value;
}

// Writes the first `count` of a tile row's values.
inline void store(float* to, const Vector* from, long count) {
    for (; count >= kLanes; count -= kLanes, to += kLanes, ++from) *reinterpret_cast<Vector*>(to) = *from;
    for (long lane = 0; lane < count; ++lane) to[lane] = (*from)[lane];
}

struct Tap {
    long image;   // offset from a pixel's base, in floats, of what this tap reads beside the weight
    long weight;  // offset of its weights (channels that are summed, channels that are written)
};

// Accumulates `Pixels` pixels times `Vectors` vectors of written channels over all taps and `depth` summed channels.
// Forward reads x at `read`. The gradient reads g there, and at `own` the x whose gradient it writes; it clamps w to
// [x - 1, x + 1], whose bounds stay in registers: hardtanh(w - x) took 1.15 times as long on Zen 4.
template <bool kForward, int Pixels, int Vectors>
inline void accumulate(const float* const* read, const float* const* own, float* const* write, const float* weight,
                       const std::vector<Tap>& taps, long depth, long width, long count) {
    Vector sum[Pixels][Vectors] = {}, x[Pixels][Vectors], low[Pixels][Vectors], high[Pixels][Vectors];
    if (!kForward)
        for (int p = 0; p < Pixels; ++p)
            for (int v = 0; v < Vectors; ++v) {
                x[p][v] = load(own[p] + v * kLanes);
                low[p][v] = x[p][v] - 1.0f, high[p][v] = x[p][v] + 1.0f;
            }
    for (const Tap& tap : taps) {
        const float* w = weight + tap.weight;
        const float* from[Pixels];
        for (int p = 0; p < Pixels; ++p) from[p] = read[p] + tap.image;
        for (long k = 0; k < depth; ++k, w += width) {
            Vector row[Vectors];
            for (int v = 0; v < Vectors; ++v) row[v] = load(w + v * kLanes);
            for (int p = 0; p < Pixels; ++p)
                for (int v = 0; v < Vectors; ++v)
                    if (kForward)
                        sum[p][v] -= magnitude(row[v] - from[p][k]);
                    else
                        sum[p][v] += (clamp(row[v], low[p][v], high[p][v]) - x[p][v]) * from[p][k];
        }
    }
    for (int p = 0; p < Pixels; ++p) store(write[p], sum[p], count);
}

// The same for any number of pixels up to `Pixels`.
template <bool kForward, int Pixels, int Vectors>
void tile(int pixels, const float* const* read, const float* const* own, float* const* write, const float* weight,
          const std::vector<Tap>& taps, long depth, long width, long count) {
    if (pixels == Pixels) {
        accumulate<kForward, Pixels, Vectors>(read, own, write, weight, taps, depth, width, count);
        return;
    }
    for (int p = 0; p < pixels; ++p)
        accumulate<kForward, 1, Vectors>(read + p, own + p, write + p, weight, taps, depth, width, count);
}

template <typename Float>
struct Plane {  // channels-last images
    Float* data;
    long height, width, channels;
    Float* at(long b, long h, long w) const { return data + ((b * height + h) * width + w) * channels; }
};

struct Place {  // where one pixel of a tile reads and writes, before its block of written channels
    const float* read;
    const float* own;
    float* write;
};

struct Extent {
    long pixels, groups;
    long depth;           // channels that are summed
    long channels, width; // channels that are written, and that number rounded up to whole vectors
    long weights;         // floats of one group's weights
};

// Pixels of a chunk share one block of weights while it is in the cache.
constexpr long kChunk = 96;

template <bool kForward, int Pixels, int Vectors, typename Placing>
void sweep_block(long chunk, long end, long group, long block, const float* weight, const std::vector<Tap>& taps,
                 const Extent& extent, const Placing& place) {
    const long left = extent.channels - block, count = left < Vectors * kLanes ? left : Vectors * kLanes;
    for (long first = chunk; first < end; first += Pixels) {
        const float *read[Pixels], *own[Pixels];
        float* write[Pixels];
        int used = 0;
        for (; used < Pixels && first + used < end; ++used) {
            const Place at = place(group, first + used);
            read[used] = at.read, own[used] = at.own + block, write[used] = at.write + block;
        }
        tile<kForward, Pixels, Vectors>(used, read, own, write, weight + group * extent.weights + block, taps,
                                        extent.depth, extent.width, count);
    }
}

template <bool kForward, typename Placing>
void sweep(const float* weight, const std::vector<Tap>& taps, const Extent& extent, int threads, const Placing& place) {
    constexpr int kWide = kForward ? 6 : kGradientPixels, kNarrow = kForward ? 8 : kGradientPixels + 1;
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (long group = 0; group < extent.groups; ++group)
        for (long chunk = 0; chunk < extent.pixels; chunk += kChunk) {
            const long end = chunk + kChunk < extent.pixels ? chunk + kChunk : extent.pixels;
            long block = 0;
            for (; block + 2 * kLanes <= extent.width; block += 2 * kLanes)
                sweep_block<kForward, kWide, 2>(chunk, end, group, block, weight, taps, extent, place);
            if (block < extent.width)
                sweep_block<kForward, kNarrow, 1>(chunk, end, group, block, weight, taps, extent, place);
        }
}

}  // namespace

// Sizes: x (batch, height, width, groups * in_channels), already padded; weight (groups, kernel_h, kernel_w,
// in_channels, padded_out) with zeros beyond out_channels; y (batch, out_h, out_w, groups * out_channels).
extern "C" void reparam_adder_forward(const float* x, const float* weight, float* y, long batch, long height, long width,
                                      long in_channels, long out_channels, long padded_out, long groups, long kernel_h,
                                      long kernel_w, long out_h, long out_w, long stride_h, long stride_w,
                                      long dilation_h, long dilation_w, int threads) {
    const Plane<const float> input{x, height, width, groups * in_channels};
    const Plane<float> output{y, out_h, out_w, groups * out_channels};
    std::vector<Tap> taps;
    for (long i = 0; i < kernel_h; ++i)
        for (long j = 0; j < kernel_w; ++j)
            taps.push_back({(i * dilation_h * width + j * dilation_w) * input.channels,
                            (i * kernel_w + j) * in_channels * padded_out});
    const Extent extent{batch * out_h * out_w, groups,     in_channels,
                        out_channels,          padded_out, kernel_h * kernel_w * in_channels * padded_out};
    sweep<true>(weight, taps, extent, threads, [&](long group, long at) {
        const long b = at / (out_h * out_w), h = at / out_w % out_h, w = at % out_w;
        const float* read = input.at(b, h * stride_h, w * stride_w) + group * in_channels;
        return Place{read, read, output.at(b, h, w) + group * out_channels};
    });
}

// Sizes: x and gx (batch, height, width, groups * padded_in), not padded in space; weight (groups, kernel_h, kernel_w,
// out_channels, padded_in), zeros beyond in_channels; gradient (batch, grad_h, grad_w, groups * out_channels) with
// `margin` rows and columns of zeros before the real ones, and behind them as many as the last pixel reads.
extern "C" void reparam_adder_input_gradient(const float* x, const float* gradient, const float* weight, float* gx,
                                             long batch, long height, long width, long padded_in, long out_channels,
                                             long groups, long kernel_h, long kernel_w, long grad_h, long grad_w,
                                             long margin_h, long margin_w, long padding_h, long padding_w,
                                             long stride_h, long stride_w, long dilation_h, long dilation_w,
                                             int threads) {
    const Plane<const float> input{x, height, width, groups * padded_in};
    const Plane<const float> given{gradient, grad_h, grad_w, groups * out_channels};
    const Plane<float> output{gx, height, width, groups * padded_in};
    // With a stride, pixels fall into classes that are read by the same taps.
    for (long class_h = 0; class_h < stride_h && class_h < height; ++class_h)
        for (long class_w = 0; class_w < stride_w && class_w < width; ++class_w) {
            std::vector<Tap> taps;
            for (long i = 0; i < kernel_h; ++i)
                for (long j = 0; j < kernel_w; ++j) {
                    const long h = class_h + padding_h - i * dilation_h, w = class_w + padding_w - j * dilation_w;
                    if (h % stride_h || w % stride_w) continue;
                    taps.push_back({(h / stride_h * grad_w + w / stride_w) * given.channels,
                                    (i * kernel_w + j) * out_channels * padded_in});
                }
            const long rows = (height - class_h + stride_h - 1) / stride_h;
            const long columns = (width - class_w + stride_w - 1) / stride_w;
            const Extent extent{batch * rows * columns, groups,    out_channels,
                                padded_in,              padded_in, kernel_h * kernel_w * out_channels * padded_in};
            sweep<false>(weight, taps, extent, threads, [&](long group, long at) {
                const long b = at / (rows * columns), row = at / columns % rows, column = at % columns;
                const long h = class_h + row * stride_h, w = class_w + column * stride_w;
                return Place{given.at(b, margin_h + row, margin_w + column) + group * out_channels,
                             input.at(b, h, w) + group * padded_in, output.at(b, h, w) + group * padded_in};
            });
        }
}

extern "C" int reparam_adder_lanes() { return kLanes; }
