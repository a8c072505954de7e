// Integer matrix products and convolutions on a CPU: int8 codes of float32 activations, int16 weights, int32 sums.
//
//     y[m, o] = (sum_k codes[m, k] * w[o, k]) * (step[m] * scale[o]) + bias[o]
//
// A few rows of codes, widened to int16, stay in the cache while panels of weights stream past them; a tile of rows times
// outputs stays in registers. One instruction multiplies pairs of int16 and adds the two products, so weights are packed
// in pairs of inputs: (panels of 16 outputs, pairs, 16, 2), the same on every machine.
// Compiled on first use by native.py, without contraction to FMAs: integer_reference.py gives the same bits.

#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr int kPanel = 16;
constexpr long kBlock = 48;  // rows of a task; at 3072 inputs they take 288 KiB

#if defined(__AVX512BW__)
typedef __m512i Sums, Pairs;  // of kLanes outputs, and for each two weights or codes
constexpr int kLanes = 16, kRows = 12, kPanels = 2;
inline Pairs load(const int16_t* from) { return _mm512_loadu_si512(from); }
inline Pairs pair(const int16_t* from) {
    int32_t both;
    std::memcpy(&both, from, sizeof both);
    return _mm512_set1_epi32(both);
}
inline Sums add_products(Sums sums, Pairs weights, Pairs codes) {
#if defined(__AVX512VNNI__)
    return _mm512_dpwssd_epi32(sums, weights, codes);
#else
    return _mm512_add_epi32(sums, _mm512_madd_epi16(weights, codes));
#endif
}
inline void store(int32_t* to, Sums sums) { _mm512_storeu_si512(to, sums); }
#elif defined(__AVX2__)
typedef __m256i Sums, Pairs;
constexpr int kLanes = 8, kRows = 6, kPanels = 1;
inline Pairs load(const int16_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
inline Pairs pair(const int16_t* from) {
    int32_t both;
    std::memcpy(&both, from, sizeof both);
    return _mm256_set1_epi32(both);
}
inline Sums add_products(Sums sums, Pairs weights, Pairs codes) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(weights, codes));
}
inline void store(int32_t* to, Sums sums) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), sums); }
#else
// Plain loops over whole vectors, for the compiler to map. Sums may wrap on their way: unsigned, where that is defined.
constexpr int kLanes = 8, kRows = 4, kPanels = 1;
struct Pairs {
    int16_t lane[2 * kLanes];
};
struct Sums {
    uint32_t lane[kLanes] = {};
};
inline Pairs load(const int16_t* from) {
    Pairs pairs;
    std::memcpy(pairs.lane, from, sizeof pairs.lane);
    return pairs;
}
inline Pairs pair(const int16_t* from) {
    Pairs pairs;
    for (int lane = 0; lane < 2 * kLanes; ++lane) pairs.lane[lane] = from[lane % 2];
    return pairs;
}
inline Sums add_products(Sums sums, const Pairs& weights, const Pairs& codes) {
    for (int lane = 0; lane < kLanes; ++lane)
        sums.lane[lane] += static_cast<uint32_t>(weights.lane[2 * lane] * codes.lane[2 * lane] +
                                                 weights.lane[2 * lane + 1] * codes.lane[2 * lane + 1]);
    return sums;
}
inline void store(int32_t* to, const Sums& sums) { std::memcpy(to, sums.lane, sizeof sums.lane); }
#endif

// Sums of `Rows` rows of codes times `Panels` panels of weights; to (Rows, Panels * kPanel). Every loop over sums is
// unrolled by name, the last one too: one that is not keeps g++ from holding them in registers, at 0.6 times the speed.
template <int Rows, int Panels>
void accumulate(const int16_t* codes, long stride, const int16_t* weight, long pairs, int32_t* to) {
    constexpr int kEach = kPanel / kLanes, kVectors = Panels * kEach;
    Sums sums[Rows][kVectors] = {};
    for (long k = 0; k < pairs; ++k) {
        Pairs weights[kVectors];
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v)
            weights[v] = load(weight + (v / kEach * pairs + k) * 2 * kPanel + v % kEach * 2 * kLanes);
#pragma GCC unroll 16
        for (int row = 0; row < Rows; ++row) {
            const Pairs both = pair(codes + row * stride + 2 * k);
#pragma GCC unroll 16
            for (int v = 0; v < kVectors; ++v) sums[row][v] = add_products(sums[row][v], weights[v], both);
        }
    }
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row)
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) store(to + row * Panels * kPanel + v * kLanes, sums[row][v]);
}

// The same for any number of rows up to `Rows`.
template <int Rows, int Panels>
void tile(long rows, const int16_t* codes, long stride, const int16_t* weight, long pairs, int32_t* to) {
    if (rows >= Rows)
        accumulate<Rows, Panels>(codes, stride, weight, pairs, to);
    else if constexpr (Rows > 1)
        tile<Rows - 1, Panels>(rows, codes, stride, weight, pairs, to);
}

struct Extent {
    long rows, inputs, outputs;  // of one group
    long groups;
    long pairs() const { return (inputs + 1) / 2; }
    long panels() const { return (outputs + kPanel - 1) / kPanel; }
    long blocks() const { return (rows + kBlock - 1) / kBlock; }
};

struct Block {  // consecutive rows of a group, with what a thread keeps of them
    long group, first, rows;
    long stride;  // codes from one row to the next, of which the caller's are the first ones; weights beyond are zero
    int16_t* codes;
    float* steps;
};

template <int Panels, typename Write>
void sweep_panels(const Block& block, long panel, const int16_t* weight, const Extent& extent, const Write& write) {
    alignas(64) int32_t sums[kRows * Panels * kPanel];
    for (long row = 0; row < block.rows; row += kRows) {
        const long rows = block.rows - row < kRows ? block.rows - row : kRows;
        tile<kRows, Panels>(rows, block.codes + row * block.stride, block.stride, weight, extent.pairs(), sums);
        for (long r = 0; r < rows; ++r) {
            const long output = panel * kPanel, left = extent.outputs - output;
            write(block, row + r, output, left < Panels * kPanel ? left : Panels * kPanel, sums + r * Panels * kPanel);
        }
    }
}

// Calls `fill(block)` for blocks of rows, then `write(block, row, output, count, sums)` for pieces of each row.
template <typename Fill, typename Write>
void sweep(const int16_t* weight, const Extent& extent, int threads, const Fill& fill, const Write& write) {
    // A thread that gets another part of the outputs of the same rows keeps their codes; few rows are split by outputs.
    const long panels = extent.panels(), pairs = extent.pairs(), blocks = extent.groups * extent.blocks();
    const long wanted = threads > 1 ? (4 * threads + blocks - 1) / (blocks ? blocks : 1) : 1;
    const long each = (panels + wanted - 1) / wanted, parts = each ? (panels + each - 1) / each : 0;
#pragma omp parallel num_threads(threads)
    {
        // Kept between calls: fresh memory of this size would be mapped page by page each time.
        static thread_local std::vector<int16_t> codes;
        static thread_local std::vector<float> steps(kBlock);
        const long stride = 2 * pairs;
        if (static_cast<long>(codes.size()) < kBlock * stride) codes.resize(kBlock * stride);
        long held = -1;
#pragma omp for collapse(2) schedule(dynamic)
        for (long index = 0; index < blocks; ++index)
            for (long part = 0; part < parts; ++part) {
                const long group = index / extent.blocks(), first = index % extent.blocks() * kBlock;
                const long rows = extent.rows - first < kBlock ? extent.rows - first : kBlock;
                const Block block{group, first, rows, stride, codes.data(), steps.data()};
                if (held != index) fill(block), held = index;
                const long end = (part + 1) * each < panels ? (part + 1) * each : panels;
                long panel = part * each;
                const int16_t* own = weight + group * panels * pairs * 2 * kPanel;
                for (; panel + kPanels <= end; panel += kPanels)
                    sweep_panels<kPanels>(block, panel, own + panel * pairs * 2 * kPanel, extent, write);
                for (; panel < end; ++panel)
                    sweep_panels<1>(block, panel, own + panel * pairs * 2 * kPanel, extent, write);
            }
    }
}

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
int32_t largest_magnitude(const float* x, long count) {
    int32_t largest = 0;
    for (long i = 0; i < count; ++i) {
        const int32_t magnitude = bits_of(x[i]) & kMagnitude;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest;
}

// The caller's step, or without one the smallest 2**e, e >= -126, with 127 * 2**e >= the largest magnitude. NaN where the
// magnitudes hold a NaN, or an infinity that has no such step: it turns every output that it scales into NaN.
float step_of(int32_t largest, const float* step) {
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
    const float *scale, *bias;  // of a group's outputs one after the other; bias may be null
    void operator()(float* y, float step, long output, long count, const int32_t* sums) const {
        if (bias)
            for (long i = 0; i < count; ++i)
                y[i] = static_cast<float>(sums[i]) * (step * scale[output + i]) + bias[output + i];
        else
            for (long i = 0; i < count; ++i) y[i] = static_cast<float>(sums[i]) * (step * scale[output + i]);
    }
};

struct Window {  // where the taps of an output pixel read; all sizes height before width
    long image[2], kernel[2], output[2], stride[2], padding[2], dilation[2];
    long channels;  // of the whole image

    // Calls `visit(tap, offset)` for each tap of output pixel `at` of a batch, offset -1 outside of the image.
    template <typename Visit>
    void taps(long at, const Visit& visit) const {
        const long b = at / (output[0] * output[1]), oh = at / output[1] % output[0], ow = at % output[1];
        for (long i = 0; i < kernel[0]; ++i)
            for (long j = 0; j < kernel[1]; ++j) {
                const long h = oh * stride[0] - padding[0] + i * dilation[0];
                const long w = ow * stride[1] - padding[1] + j * dilation[1];
                const bool inside = h >= 0 && h < image[0] && w >= 0 && w < image[1];
                visit(i * kernel[1] + j, inside ? ((b * image[0] + h) * image[1] + w) * channels : -1);
            }
    }
    long pixels() const { return output[0] * output[1]; }
};

}  // namespace

// codes (rows, inputs), weight packed, y (rows, outputs).
extern "C" void reparam_integer_matmul(const int8_t* codes, const int16_t* weight, int32_t* y, long rows, long inputs,
                                       long outputs, int threads) {
    sweep(
        weight, Extent{rows, inputs, outputs, 1}, threads,
        [&](const Block& block) {
            for (long row = 0; row < block.rows; ++row)
                for (long i = 0; i < inputs; ++i)
                    block.codes[row * block.stride + i] = codes[(block.first + row) * inputs + i];
        },
        [&](const Block& block, long row, long output, long count, const int32_t* sums) {
            std::memcpy(y + (block.first + row) * outputs + output, sums, count * sizeof *sums);
        });
}

// x (rows, inputs), weight packed, y (rows, outputs); without a step, each row has its own.
extern "C" void reparam_integer_linear(const float* x, const int16_t* weight, const float* scale, const float* bias,
                                       const float* step, float* y, long rows, long inputs, long outputs, int threads) {
    const Epilogue epilogue{scale, bias};
    sweep(
        weight, Extent{rows, inputs, outputs, 1}, threads,
        [&](const Block& block) {
            for (long row = 0; row < block.rows; ++row) {
                const float* from = x + (block.first + row) * inputs;
                block.steps[row] = step_of(largest_magnitude(from, inputs), step);
                quantise(from, inputs, block.steps[row], block.codes + row * block.stride);
            }
        },
        [&](const Block& block, long row, long output, long count, const int32_t* sums) {
            epilogue(y + (block.first + row) * outputs + output, block.steps[row], output, count, sums);
        });
}

// x and codes (images, size), steps (images).
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

// codes (batch, height, width, groups * inputs) and steps (batch); weight (groups, packed over kernel_h, kernel_w, inputs);
// y (batch, out_h, out_w, groups * outputs). `window`: see Window, 12 numbers.
extern "C" void reparam_integer_conv2d(const int8_t* codes, const float* steps, const int16_t* weight, const float* scale,
                                       const float* bias, float* y, const long* sizes, long batch, long inputs,
                                       long outputs, long groups, int threads) {
    Window window;
    std::memcpy(&window, sizes, 12 * sizeof *sizes);
    window.channels = groups * inputs;
    const Epilogue epilogue{scale, bias};
    const long taps = window.kernel[0] * window.kernel[1];
    sweep(
        weight, Extent{batch * window.pixels(), taps * inputs, outputs, groups}, threads,
        [&](const Block& block) {
            for (long row = 0; row < block.rows; ++row) {
                block.steps[row] = steps[(block.first + row) / window.pixels()];
                window.taps(block.first + row, [&](long tap, long offset) {
                    int16_t* to = block.codes + row * block.stride + tap * inputs;
                    const int8_t* from = codes + offset + block.group * inputs;
                    for (long i = 0; i < inputs; ++i) to[i] = offset < 0 ? 0 : from[i];
                });
            }
        },
        [&](const Block& block, long row, long output, long count, const int32_t* sums) {
            float* to = y + ((block.first + row) * groups + block.group) * outputs + output;
            epilogue(to, block.steps[row], block.group * outputs + output, count, sums);
        });
}

// One input and one output a group; weight (kernel_h * kernel_w, channels), the rest as above.
extern "C" void reparam_integer_depthwise(const int8_t* codes, const float* steps, const int16_t* weight,
                                          const float* scale, const float* bias, float* y, const long* sizes, long batch,
                                          long channels, int threads) {
    Window window;
    std::memcpy(&window, sizes, 12 * sizeof *sizes);
    window.channels = channels;
    const Epilogue epilogue{scale, bias};
    constexpr long kChannels = 32;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long at = 0; at < batch * window.pixels(); ++at)
        for (long first = 0; first < channels; first += kChannels) {
            const long count = channels - first < kChannels ? channels - first : kChannels;
            uint32_t sums[kChannels] = {};
            window.taps(at, [&](long tap, long offset) {
                if (offset < 0) return;
                const int8_t* from = codes + offset + first;
                const int16_t* weights = weight + tap * channels + first;
                for (long c = 0; c < count; ++c) sums[c] += static_cast<uint32_t>(from[c] * weights[c]);
            });
            epilogue(y + at * channels + first, steps[at / window.pixels()], first, count,
                     reinterpret_cast<const int32_t*>(sums));
        }
}
