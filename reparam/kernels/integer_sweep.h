// The loops that all integer sums share: rows of codes against panels of weights, a tile of sums in registers.
//
// A thread keeps a few rows of codes in its cache while panels of weights stream past them. A panel holds the weights of
// a few outputs, input by input; what one lane of a register takes at once, a group of inputs, lies together, and one
// group of a panel is 64 bytes: the same layout on every machine. A kernel says what a group is and how it is summed:
//
//     Code, Weight       of one input; codes are what is read, moved up by kOffset
//     kGroup             inputs that a lane takes at once
//     kPanel, kLanes     outputs of a panel; sums in one register
//     kHead              groups in front of a panel, from which its sums start
//     kRows, kPanels     of the tile in registers
//     Sums, start(head, vector), load(weights), spread(codes), add(sums, weights, codes), store(to, sums)

#pragma once

#include <cstdint>
#include <vector>

namespace {  // each library has its own copy, made for its flags

constexpr long kBlock = 48;  // rows of a task; of 3072 int16 codes they take 288 KiB

// Sums of `Rows` rows of codes and `Panels` panels of weights; to (Rows, Panels * kPanel). Every loop over sums is
// unrolled by name, the last one too: one that is not keeps g++ from holding them in registers, at 0.6 times the speed.
template <typename Kernel, int Rows, int Panels>
void accumulate(const typename Kernel::Code* codes, long stride, const typename Kernel::Weight* weight, long groups,
                int32_t* to) {
    constexpr int kEach = Kernel::kPanel / Kernel::kLanes, kVectors = Panels * kEach;
    constexpr long kStep = Kernel::kPanel * Kernel::kGroup, kVector = Kernel::kLanes * Kernel::kGroup;
    const long panel = (Kernel::kHead + groups) * kStep;
    typename Kernel::Sums sums[Rows][kVectors];
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row)
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) sums[row][v] = Kernel::start(weight + v / kEach * panel, v % kEach);
    weight += Kernel::kHead * kStep;
    for (long k = 0; k < groups; ++k) {
        decltype(Kernel::load(weight)) weights[kVectors];
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v)
            weights[v] = Kernel::load(weight + v / kEach * panel + k * kStep + v % kEach * kVector);
#pragma GCC unroll 16
        for (int row = 0; row < Rows; ++row) {
            const auto same = Kernel::spread(codes + row * stride + k * Kernel::kGroup);
#pragma GCC unroll 16
            for (int v = 0; v < kVectors; ++v) sums[row][v] = Kernel::add(sums[row][v], weights[v], same);
        }
    }
#pragma GCC unroll 16
    for (int row = 0; row < Rows; ++row)
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v)
            Kernel::store(to + row * Panels * Kernel::kPanel + v * Kernel::kLanes, sums[row][v]);
}

// The same for any number of rows up to `Rows`.
template <typename Kernel, int Rows, int Panels>
void tile(long rows, const typename Kernel::Code* codes, long stride, const typename Kernel::Weight* weight, long groups,
          int32_t* to) {
    if (rows >= Rows)
        accumulate<Kernel, Rows, Panels>(codes, stride, weight, groups, to);
    else if constexpr (Rows > 1)
        tile<Kernel, Rows - 1, Panels>(rows, codes, stride, weight, groups, to);
}

template <typename Kernel>
struct Extent {
    long rows, inputs, outputs;  // of one part, as each group of a convolution is one
    long parts;
    long groups() const { return (inputs + Kernel::kGroup - 1) / Kernel::kGroup; }
    long panels() const { return (outputs + Kernel::kPanel - 1) / Kernel::kPanel; }
    long blocks() const { return (rows + kBlock - 1) / kBlock; }
    long panel_size() const { return (Kernel::kHead + groups()) * Kernel::kPanel * Kernel::kGroup; }
};

template <typename Kernel>
struct Block {  // consecutive rows of a part, with what a thread keeps of them
    long part, first, rows;
    long stride;  // codes from one row to the next: the inputs, and what fills up the last group
    typename Kernel::Code* codes;
    float* steps;
};

template <typename Kernel, typename Image>
void copy_codes(const Image* __restrict from, long count, typename Kernel::Code* __restrict to) {
    for (long i = 0; i < count; ++i) to[i] = static_cast<typename Kernel::Code>(from[i] + Kernel::kOffset);
}

template <typename Kernel, int Panels, typename Write>
void sweep_panels(const Block<Kernel>& block, long panel, const typename Kernel::Weight* weight,
                  const Extent<Kernel>& extent, const Write& write) {
    constexpr long kWidth = Panels * Kernel::kPanel;
    alignas(64) int32_t sums[Kernel::kRows * kWidth];
    const long output = panel * Kernel::kPanel, left = extent.outputs - output, count = left < kWidth ? left : kWidth;
    for (long row = 0; row < block.rows; row += Kernel::kRows) {
        const long rows = block.rows - row < Kernel::kRows ? block.rows - row : Kernel::kRows;
        tile<Kernel, Kernel::kRows, Panels>(rows, block.codes + row * block.stride, block.stride, weight,
                                            extent.groups(), sums);
        for (long r = 0; r < rows; ++r) write(block, row + r, output, count, sums + r * kWidth);
    }
}

// Calls `fill(block)` for blocks of rows, then `write(block, row, output, count, sums)` for pieces of each row.
template <typename Kernel, typename Fill, typename Write>
void sweep(const typename Kernel::Weight* weight, const Extent<Kernel>& extent, int threads, const Fill& fill,
           const Write& write) {
    // Few rows are shared out by outputs; a thread that gets other outputs of the rows it has keeps their codes.
    const long panels = extent.panels(), blocks = extent.parts * extent.blocks();
    const long wanted = threads > 1 && blocks ? (4 * threads + blocks - 1) / blocks : 1;
    const long each = (panels + wanted - 1) / wanted, shares = (panels + each - 1) / each;
#pragma omp parallel num_threads(threads)
    {
        // Kept between calls: fresh memory of this size would be mapped page by page each time.
        static thread_local std::vector<typename Kernel::Code> codes;
        static thread_local std::vector<float> steps(kBlock);
        const long stride = extent.groups() * Kernel::kGroup;
        if (static_cast<long>(codes.size()) < kBlock * stride) codes.resize(kBlock * stride);
        long held = -1;
#pragma omp for collapse(2) schedule(dynamic)
        for (long index = 0; index < blocks; ++index)
            for (long share = 0; share < shares; ++share) {
                const long part = index / extent.blocks(), first = index % extent.blocks() * kBlock;
                const long rows = extent.rows - first < kBlock ? extent.rows - first : kBlock;
                const Block<Kernel> block{part, first, rows, stride, codes.data(), steps.data()};
                if (held != index) fill(block), held = index;
                const long end = (share + 1) * each < panels ? (share + 1) * each : panels;
                const typename Kernel::Weight* own = weight + part * panels * extent.panel_size();
                long panel = share * each;
                for (; panel + Kernel::kPanels <= end; panel += Kernel::kPanels)
                    sweep_panels<Kernel, Kernel::kPanels>(block, panel, own + panel * extent.panel_size(), extent, write);
                for (; panel < end; ++panel)
                    sweep_panels<Kernel, 1>(block, panel, own + panel * extent.panel_size(), extent, write);
            }
    }
}

}  // namespace
