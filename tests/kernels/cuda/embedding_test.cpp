#include "kernels/cuda/embedding.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "kernels/cuda/device_array.h"

namespace gradus::cuda {
namespace {

using test::DeviceArray;
using test::expect_close;
using test::kept;
using test::kPrecisions;
using test::Precisions;
using test::random_numbers;
using test::rounding_of;
using Numbers = std::vector<double>;

/// B, T, C, rows of the table, and elements by which tensors are moved off their boundary.
constexpr int64_t kShapes[][5] = {{1, 1, 1, 1, 0},    {3, 7, 33, 11, 0},   {2, 45, 96, 7, 0},
                                  {1, 5, 1029, 3, 0}, {4, 40, 768, 65, 0}, {4, 40, 96, 65, 1},
                                  {1, 2100, 8, 40, 0}};
/// The rank holds rows [kFirstRow, kFirstRow + table) of the vocabulary; tokens lie outside too.
constexpr int64_t kFirstRow = 5;
constexpr int64_t kFirstPosition = 2;

Numbers some_tokens(int64_t count, int64_t table) {
  Numbers tokens;
  for (int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<double>(kFirstRow - 2 + i * 7919 % 10007 % (table + 4)));
  }
  return tokens;
}

TEST(CudaEmbedding, AgreesWithFp64) {
  for (const Precisions& p : kPrecisions) {
    for (const auto& [batch, positions, channels, table, offset] : kShapes) {
      for (const double p_drop : {0.0, 0.25}) {
        SCOPED_TRACE(to_text(p) + " " + std::to_string(batch) + "x" + std::to_string(positions) +
                     "x" + std::to_string(channels) + (offset > 0 ? " misaligned" : ""));
        const int64_t rows = batch * positions;
        const int64_t count = rows * channels;
        const EmbeddingRows shape{.rows = rows,
                                  .channels = channels,
                                  .positions = positions,
                                  .residual_dtype = p.residual,
                                  .param_dtype = p.activation};
        const Dropout dropout{
            .p = p_drop, .key = 0x1122334455667788u, .first_sample = 9, .first_position = 2};
        const DeviceArray tokens(DType::i32, some_tokens(rows, table));
        const DeviceArray weight(p.activation, random_numbers(table * channels, 1), offset);
        const DeviceArray table_of_positions(
            p.activation, random_numbers((kFirstPosition + positions) * channels, 2), offset);
        const Numbers ids = tokens.download();
        const Numbers weights = weight.download();
        const Numbers shifts = table_of_positions.download();
        Numbers gathered(static_cast<size_t>(count));
        Numbers embedded(static_cast<size_t>(count));
        for (int64_t i = 0; i < count; ++i) {
          const int64_t row = i / channels;
          const int64_t c = i % channels;
          const auto id = static_cast<int64_t>(ids[static_cast<size_t>(row)]) - kFirstRow;
          const bool here = id >= 0 && id < table;
          const auto place = static_cast<size_t>(i);
          gathered[place] = here ? weights[static_cast<size_t>(id * channels + c)] : 0.0;
          const double factor = kept(dropout, row, positions, c) ? dropout.scale() : 0.0;
          const auto position =
              static_cast<size_t>((kFirstPosition + row % positions) * channels + c);
          embedded[place] = (gathered[place] + shifts[position]) * factor;
        }

        const DeviceArray out(p.residual, count, offset);
        TokenEmbedding a{.out = out.data(),
                         .tokens = tokens.data<int32_t>(),
                         .weight = weight.data(),
                         .table_rows = table,
                         .first_row = kFirstRow};
        token_embedding_forward(a, shape, nullptr);
        EXPECT_EQ(out.download(), gathered);
        position_embedding_forward({.inout = out.data(),
                                    .weight = table_of_positions.data(),
                                    .first_position = kFirstPosition,
                                    .dropout = dropout},
                                   shape, nullptr);
        const Numbers in_two_steps = out.download();
        expect_close(in_two_steps, embedded, rounding_of(p.residual), "embedded");
        a.position_weight = table_of_positions.data();
        a.first_position = kFirstPosition;
        a.dropout = dropout;
        token_embedding_forward(a, shape, nullptr);
        EXPECT_EQ(out.download(), in_two_steps) << "both at once";

        const DeviceArray dout(p.residual, random_numbers(count, 3), offset);
        Numbers gradient = dout.download();
        Numbers want_positions = random_numbers((kFirstPosition + positions) * channels, 4);
        const DeviceArray dpositions(DType::fp32, want_positions, offset);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t row = i / channels;
          const int64_t c = i % channels;
          double& value = gradient[static_cast<size_t>(i)];
          value *= kept(dropout, row, positions, c) ? dropout.scale() : 0.0;
          want_positions[static_cast<size_t>((kFirstPosition + row % positions) * channels + c)] +=
              value;
        }
        position_embedding_backward({.dinout = dout.data(),
                                     .dweight = dpositions.data<float>(),
                                     .first_position = kFirstPosition,
                                     .dropout = dropout},
                                    shape, nullptr);
        const Numbers dropped = dout.download();
        expect_close(dropped, gradient, rounding_of(p.residual), "dropped");
        expect_close(dpositions.download(), want_positions, 1e-6, "the positions' gradient", 0.5);

        Numbers want_table = random_numbers(table * channels, 5);
        const DeviceArray dtable(DType::fp32, want_table, offset);
        for (int64_t i = 0; i < count; ++i) {
          const auto id = static_cast<int64_t>(ids[static_cast<size_t>(i / channels)]) - kFirstRow;
          if (id < 0 || id >= table) continue;
          want_table[static_cast<size_t>(id * channels + i % channels)] +=
              dropped[static_cast<size_t>(i)];
        }
        const DeviceArray scratch(DType::u8, token_order_scratch(rows));
        token_embedding_backward({.dweight = dtable.data<float>(),
                                  .dout = dout.data(),
                                  .tokens = tokens.data<int32_t>(),
                                  .table_rows = table,
                                  .first_row = kFirstRow,
                                  .scratch = scratch.data()},
                                 shape, nullptr);
        expect_close(dtable.download(), want_table, 1e-5, "the table's gradient", 0.5);
      }
    }
  }
}

TEST(CudaEmbedding, PositionsAreOfWholeSamples) {
  const DeviceArray some(DType::fp32, 7 * 8);
  const EmbeddingRows shape{.rows = 7, .channels = 8, .positions = 2};
  EXPECT_THROW(position_embedding_backward({.dinout = some.data(), .dweight = some.data<float>()},
                                           shape, nullptr),
               ShapeError);
}

}  // namespace
}  // namespace gradus::cuda
