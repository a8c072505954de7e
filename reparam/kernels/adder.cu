// The adder convolution and its input gradient on a GPU, for channels-last float32 tensors.
//
//     y[p, o]  = -sum_k |w[o, k] - x[p, k]|
//     gx[q, c] = sum over the outputs p that read q, and o, of  g[p, o] * hardtanh(w[o, k] - x[q, c])
//
// The shape of a fast matrix kernel: a block of threads writes BM pixels times BN channels, each thread TM times TN of
// them in registers; the operands of BK summed channels stream through shared memory, STAGES tiles deep. Both results
// are one walk: a written pixel reads the source at a fixed position for each tap, and a stride in the gradient splits
// the pixels into phases that are read by the same taps. Compiled by NVRTC through adder_nvrtc.py, which defines the
// sizes in capitals, FORWARD, and VECTOR: floats per copy, 4 where all channels allow it, otherwise 1.
//
// hardtanh(d) = 2 * saturate((d + 1) / 2) - 1, so that the gradient, too, takes two instructions per difference:
//     gx = 2 * sum g * saturate(w / 2 + (1 - x) / 2) - sum g
// with the second sum once per pixel. It is off by at most the rounding of x / 2 for each difference. A saturation makes
// zeros of NaNs, so these are seen to apart: one in x or in g reaches what it would, one in w its whole channel.

constexpr int kThreads = (BM / TM) * (BN / TN);
constexpr int kLanesDown = 8, kLanesAcross = 4;  // of a warp
constexpr int kWarpsAcross = BN / TN / kLanesAcross;
constexpr int kRow = BK + 4;  // floats between pixels in shared memory: eight rows' 16 bytes lie in different banks
constexpr int kSpan = 4 * kLanesAcross;
constexpr int kNowhere = -(1 << 30);

static_assert(kWarpsAcross * kLanesAcross * TN == BN && BM % (kLanesDown * TM) == 0, "whole warps fill the block");
static_assert(kThreads % 32 == 0 && kThreads % BN == 0 && TN % 4 == 0 && BK % 4 == 0 && STAGES >= 2, "sizes fit");

// How one axis is walked: written position n of the phase reads source position origin + n * each + t * per_tap for
// the kernel's tap first + t * step.
struct Walk {
    int count, taps, first, step, origin, each, per_tap;
};

__device__ Walk walk(int phase, int written, int kernel, int stride, int padding, int dilation) {
#if FORWARD
    return {written, kernel, 0, 1, -padding, stride, dilation};
#else
    int common = stride;  // the greatest divisor of stride and dilation
    for (int other = dilation; other != 0;) {
        const int rest = common % other;
        common = other, other = rest;
    }
    const int step = stride / common;
    int first = 0;
    while (first < step && (phase + padding - first * dilation) % stride != 0) ++first;
    const int taps = first < step && first < kernel ? (kernel - first + step - 1) / step : 0;
    return {(written - phase + stride - 1) / stride,      taps, first, step,
            (phase + padding - first * dilation) / stride, 1,    -(dilation / common)};
#endif
}

struct __align__(16) Place {  // what one written pixel reads at the tap of no shift
    long long offset;         // of its channels, in floats
    int h, w;
};

// Starts a copy of VECTOR floats to shared memory, of zeros if not `inside`, when `from` is not read.
__device__ __forceinline__ void copy(float* to, const float* from, bool inside) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(4 * VECTOR),
                 "r"(inside ? 4 * VECTOR : 0)
                 : "memory");
}

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kPending>
__device__ __forceinline__ void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ float at(const float4& four, int index) {
    return index == 0 ? four.x : index == 1 ? four.y : index == 2 ? four.z : four.w;
}

// Sizes: source (batch, source_h, source_w, groups * summed); weight (kernel_h, kernel_w, groups, summed, written);
// own, the x whose gradient is taken, and out (batch, out_h, out_w, groups * written). Forward does not read `own`.
// Grid: tiles of pixels of the largest phase, tiles of written channels, phases times groups.
extern "C" __global__ void __launch_bounds__(kThreads, RESIDENT)
    adder(const float* __restrict__ source, const float* __restrict__ weight, const float* __restrict__ own,
          float* __restrict__ out, int batch, int source_h, int source_w, int out_h, int out_w, int summed, int written,
          int groups, int kernel_h, int kernel_w, int stride_h, int stride_w, int padding_h, int padding_w,
          int dilation_h, int dilation_w) {
    __shared__ __align__(16) float pixels[STAGES][BM][kRow];
    __shared__ __align__(16) float weights[STAGES][BK][BN];
    __shared__ Place places[BM];
    __shared__ int targets[BM];  // written pixels, -1 beyond the last
    const int group = blockIdx.z % groups, phase = blockIdx.z / groups, thread = threadIdx.x;
    const int phase_h = phase / stride_w, phase_w = phase % stride_w;
    const Walk rows = walk(phase_h, out_h, kernel_h, stride_h, padding_h, dilation_h);
    const Walk columns = walk(phase_w, out_w, kernel_w, stride_w, padding_w, dilation_w);
    const int area = rows.count * columns.count, total = batch * area;
    const int first = blockIdx.x * BM, channel = blockIdx.y * BN;
    if (first >= total) return;

    const int apart_h = FORWARD ? 1 : stride_h, apart_w = FORWARD ? 1 : stride_w;
    for (int p = thread; p < BM; p += kThreads) {
        places[p] = {0, kNowhere, kNowhere};
        targets[p] = -1;
        if (first + p < total) {
            const int b = (first + p) / area, row = (first + p) % area / columns.count;
            const int column = (first + p) % area % columns.count;
            const int h = rows.origin + row * rows.each, w = columns.origin + column * columns.each;
            const long long pixel = (b * source_h + h) * source_w + w;
            places[p] = {(pixel * groups + group) * summed, h, w};
            targets[p] = (b * out_h + phase_h + row * apart_h) * out_w + phase_w + column * apart_w;
        }
    }
    const int warp = thread / 32, lane = thread % 32;
    const int top = warp / kWarpsAcross * (kLanesDown * TM) + lane / kLanesAcross;
    const int left = warp % kWarpsAcross * (kLanesAcross * TN) + lane % kLanesAcross * 4;
    float sum[TM][TN] = {};
#if !FORWARD
    __shared__ float given[BM];  // sums of g
    __shared__ int spoilt[BN];   // channels with a NaN among their weights
    constexpr int kShare = (BM + kThreads - 1) / kThreads;
    float share[kShare] = {};
    bool is_spoilt = false;
    if (thread < BN) spoilt[thread] = 0;
#endif
    __syncthreads();

    int tap_h = 0, tap_w = 0, depth = 0;  // of the tile that is fetched next
    const auto fetch = [&](int stage) {
        const int down = tap_h * rows.per_tap, right = tap_w * columns.per_tap;
        const long long shift = static_cast<long long>(down * source_w + right) * groups * summed + depth;
        constexpr int kCopies = BK / VECTOR, kAcross = BN / VECTOR;
#pragma unroll
        for (int i = thread; i < BM * kCopies; i += kThreads) {
            const int p = i / kCopies, k = i % kCopies * VECTOR;
            const Place place = places[p];
            const bool inside = static_cast<unsigned>(place.h + down) < static_cast<unsigned>(source_h) &&
                                static_cast<unsigned>(place.w + right) < static_cast<unsigned>(source_w) &&
                                depth + k < summed;
            copy(&pixels[stage][p][k], source + place.offset + shift + k, inside);
        }
        const int tap = (rows.first + tap_h * rows.step) * kernel_w + columns.first + tap_w * columns.step;
        const float* block = weight + (static_cast<long long>(tap * groups + group) * summed + depth) * written + channel;
#pragma unroll
        for (int i = thread; i < BK * kAcross; i += kThreads) {
            const int k = i / kAcross, n = i % kAcross * VECTOR;
            copy(&weights[stage][k][n], block + k * written + n, depth + k < summed && channel + n < written);
        }
        depth += BK;
        if (depth < summed) return;
        depth = 0;
        if (++tap_w == columns.taps) tap_w = 0, ++tap_h;
    };

    const int tiles = rows.taps * columns.taps * ((summed + BK - 1) / BK);
#if !FORWARD
    float half[TM][TN];  // (1 - x) / 2
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int j = 0; j < TN; ++j) {
            const int pixel = targets[top + i * kLanesDown], n = channel + left + j / 4 * kSpan + j % 4;
            const bool inside = pixel >= 0 && n < written;
            const long long place = (static_cast<long long>(pixel) * groups + group) * written + n;
            half[i][j] = inside ? fmaf(own[place], -0.5f, 0.5f) : 0.0f;
        }
#endif
#pragma unroll 1
    for (int tile = 1 - STAGES; tile < tiles; ++tile) {  // below zero, only fetches
        if (tile >= 0) {
            wait<STAGES - 2>();
            __syncthreads();
        }
        const int next = tile + STAGES - 1;
        if (next < tiles) fetch(next % STAGES);
        commit();
        if (tile < 0) continue;
        const int stage = tile % STAGES;
#pragma unroll 2
        for (int k = 0; k < BK; k += 4) {
            float4 x[TM];
#pragma unroll
            for (int i = 0; i < TM; ++i)
                x[i] = *reinterpret_cast<const float4*>(&pixels[stage][top + i * kLanesDown][k]);
#pragma unroll
            for (int q = 0; q < 4; ++q) {
                float4 w[TN / 4];
#pragma unroll
                for (int j = 0; j < TN / 4; ++j)
                    w[j] = *reinterpret_cast<const float4*>(&weights[stage][k + q][left + j * kSpan]);
#pragma unroll
                for (int i = 0; i < TM; ++i)
#pragma unroll
                    for (int j = 0; j < TN; ++j) {
#if FORWARD
                        sum[i][j] -= fabsf(at(w[j / 4], j % 4) - at(x[i], q));
#else
                        sum[i][j] = fmaf(at(x[i], q), __saturatef(fmaf(at(w[j / 4], j % 4), 0.5f, half[i][j])), sum[i][j]);
#endif
                    }
            }
        }
#if !FORWARD
#pragma unroll
        for (int i = 0; i < kShare; ++i)
            if (thread + i * kThreads < BM)
#pragma unroll
                for (int k = 0; k < BK; k += 4) {
                    const float4 g = *reinterpret_cast<const float4*>(&pixels[stage][thread + i * kThreads][k]);
                    share[i] += (g.x + g.y) + (g.z + g.w);
                }
#pragma unroll
        for (int k = thread / BN; k < BK; k += kThreads / BN) is_spoilt |= isnan(weights[stage][k][thread % BN]);
#endif
    }
#if !FORWARD
    for (int i = 0; i < kShare; ++i)
        if (thread + i * kThreads < BM) given[thread + i * kThreads] = share[i];
    if (is_spoilt) spoilt[thread % BN] = 1;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < TM; ++i)
#pragma unroll
        for (int j = 0; j < TN; ++j) {
            const float value = 2.0f * sum[i][j] - given[top + i * kLanesDown];
            const bool is_lost = isnan(half[i][j]) || spoilt[left + j / 4 * kSpan + j % 4];
            sum[i][j] = is_lost ? nanf("") : value;
        }
#endif
#pragma unroll
    for (int i = 0; i < TM; ++i) {
        const int pixel = targets[top + i * kLanesDown];
        if (pixel < 0) continue;
        float* to = out + (static_cast<long long>(pixel) * groups + group) * written;
#pragma unroll
        for (int j = 0; j < TN; j += VECTOR) {
            const int n = channel + left + j / 4 * kSpan + j % 4;
            if (n >= written) continue;
#if VECTOR == 4
            *reinterpret_cast<float4*>(to + n) = make_float4(sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]);
#else
            to[n] = sum[i][j];
#endif
        }
    }
}
