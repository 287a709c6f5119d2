// The products of GPT-2 124M, GPT-2 1.5B and a 1.3B model by cuBLASLt, and the figures that decide
// how the CUDA backend makes them: is timing candidates worth it, what do epilogues save against
// passes of their own, what does it cost to add to fp32 gradients, which logits, which workspace,
// which chunks of the head. Every result is compared with fp64 sums at sampled places first.

#include <cublasLt.h>

#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "bench/cuda/harness.h"
#include "bench/cuda/products_lab.h"
#include "core/error.h"

namespace gradus::bench {
namespace {

constexpr int64_t kRows = 16384;
constexpr int64_t kVocabulary = 50304;  // GPT-2's 50257, padded

struct Block {
  Linear qkv, proj, up, down;
};
Block block_of(int64_t rows, int64_t c) {
  return {.qkv = {"qkv", rows, c, 3 * c},
          .proj = {"proj", rows, c, c},
          .up = {"up", rows, c, 4 * c},
          .down = {"down", rows, 4 * c, c}};
}

/// Subjects that are timed together. One that the library has no algorithm for is said to be so.
class Group {
 public:
  Group(Report& report, ProductLab& lab, std::string name)
      : report_(report), lab_(lab), name_(std::move(name)) {}
  ~Group() {
    if (subjects_.empty()) return;
    report_.attempt(name_, [&] { lab_.time(std::move(subjects_)); });
  }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  void product(Pass pass, const Linear& l, const Variant& v, const std::string& label) {
    report_.attempt(name_ + " " + label, [&] {
      try {
        subjects_.push_back(lab_.product(pass, l, v, label));
      } catch (const CudaError& error) {
        const std::string why = error.what();
        const bool none = why.find("no algorithm") != std::string::npos ||
                          why.find("NOT_SUPPORTED") != std::string::npos;
        if (!none) throw;
        std::printf("%s %s, %s: the library has none\n", l.name.c_str(), name_of(pass),
                    label.c_str());
      }
    });
  }
  void chunks(Pass pass, const Linear& l, int64_t rows) {
    report_.attempt(name_, [&] { subjects_.push_back(lab_.chunks(pass, l, rows, {})); });
  }
  void add(Subject subject) { subjects_.push_back(std::move(subject)); }

 private:
  Report& report_;
  ProductLab& lab_;
  std::string name_;
  std::vector<Subject> subjects_;
};

void products(Report& report, ProductLab& lab, const std::string& title, int64_t rows, int64_t c) {
  report.heading(title + ": wgrad adds to fp32; the heuristics' first, and the best they name");
  const Block block = block_of(rows, c);
  const Linear head{"head", rows, c, kVocabulary};
  for (const Linear& layer : {block.qkv, block.proj, block.up, block.down, head}) {
    for (const Pass pass : {Pass::forward, Pass::dgrad, Pass::wgrad}) {
      report.attempt(title + " " + layer.name + " " + name_of(pass),
                     [&] { lab.time(lab.first_and_best(pass, layer, {})); });
    }
  }
}

void epilogues(Report& report, ProductLab& lab, int64_t c) {
  report.heading("epilogues, C = " + std::to_string(c));
  const Block block = block_of(kRows, c);
  for (const Linear& l : {block.qkv, block.proj}) {
    Group group(report, lab, l.name);
    group.product(Pass::forward, l, {}, "no epilogue");
    group.product(Pass::forward, l, {.epilogue = CUBLASLT_EPILOGUE_BIAS}, "BIAS");
  }
  {
    Group group(report, lab, "up");
    const auto line = [&](cublasLtEpilogue_t epilogue, const std::string& label) {
      group.product(Pass::forward, block.up, {.epilogue = epilogue}, label);
    };
    line(CUBLASLT_EPILOGUE_DEFAULT, "no epilogue");
    line(CUBLASLT_EPILOGUE_BIAS, "BIAS");
    line(CUBLASLT_EPILOGUE_GELU, "GELU");
    line(CUBLASLT_EPILOGUE_GELU_BIAS, "GELU_BIAS");
    line(CUBLASLT_EPILOGUE_GELU_AUX_BIAS, "GELU_AUX_BIAS");
    for (Subject& pass : lab.gelu_passes(block.up)) group.add(std::move(pass));
  }
  Group group(report, lab, "down");
  const auto line = [&](cublasLtEpilogue_t epilogue, const std::string& label) {
    group.product(Pass::dgrad, block.down, {.epilogue = epilogue}, label);
  };
  line(CUBLASLT_EPILOGUE_DEFAULT, "no epilogue");
  line(CUBLASLT_EPILOGUE_DGELU, "DGELU");
  line(CUBLASLT_EPILOGUE_DGELU_BGRAD, "DGELU_BGRAD");
}

void weight_gradients(Report& report, ProductLab& lab, int64_t c) {
  report.heading("weight gradients, C = " + std::to_string(c));
  const Block block = block_of(kRows, c);
  for (const Linear& l : {block.qkv, block.proj, block.down}) {
    Group group(report, lab, l.name + " wgrad");
    const auto line = [&](const Variant& v, const std::string& label) {
      group.product(Pass::wgrad, l, v, label);
    };
    line({}, "fp32, beta 1");
    line({.accumulate = false}, "fp32, beta 0");
    line({.gradient = DType::bf16, .accumulate = false}, "bf16, beta 0");
    line({.accumulate = false, .epilogue = CUBLASLT_EPILOGUE_BGRADB}, "fp32, beta 0, BGRADB");
    line({.gradient = DType::bf16, .accumulate = false, .epilogue = CUBLASLT_EPILOGUE_BGRADB},
         "bf16, beta 0, BGRADB");
    group.add(lab.column_sums(l));
  }
}

void workspaces(Report& report, ProductLab& lab, int64_t c) {
  report.heading("workspace, C = " + std::to_string(c));
  const Block block = block_of(kRows, c);
  const auto lines = [&](Pass pass, const Linear& l) {
    Group group(report, lab, "workspace");
    for (const size_t mib : {0, 4, 32}) {
      group.product(pass, l, {.workspace = mib << 20}, std::to_string(mib) + " MiB");
    }
  };
  lines(Pass::forward, block.qkv);
  lines(Pass::forward, block.down);
  lines(Pass::wgrad, block.proj);
  lines(Pass::wgrad, block.qkv);
}

void logits(Report& report, ProductLab& lab, int64_t c) {
  report.heading("logits, C = " + std::to_string(c));
  const Linear head{"head", kRows, c, kVocabulary};
  const Linear padded_rows{"head", kRows, c, 50257, kVocabulary};
  const Linear unpadded{"head", kRows, c, 50257};
  {
    Group group(report, lab, "logits");
    group.product(Pass::forward, head, {}, "bf16 logits");
    group.product(Pass::forward, head, {.result = DType::fp32}, "fp32 logits");
    group.product(Pass::forward, padded_rows, {}, "50257 columns, 50304 apart");
    group.product(Pass::forward, unpadded, {.alignment = 2}, "50257 columns");
  }
  for (const Pass pass : {Pass::dgrad, Pass::wgrad}) {
    Group group(report, lab, "logits");
    group.product(pass, head, {}, "50304 columns");
    group.product(pass, padded_rows, {}, "50257 columns, 50304 apart");
  }
  report.heading("the head in chunks of rows, C = " + std::to_string(c));
  for (const Pass pass : {Pass::forward, Pass::dgrad, Pass::wgrad}) {
    Group group(report, lab, "chunks");
    for (const int64_t rows : {int64_t{1024}, int64_t{2048}, int64_t{4096}, int64_t{8192}, kRows}) {
      group.chunks(pass, head, rows);
    }
  }
}

void types(Report& report, ProductLab& lab) {
  report.heading("types, and the alignment that is claimed");
  const Linear up{"up", kRows, 2048, 8192};
  for (const Pass pass : {Pass::forward, Pass::wgrad}) {
    {
      Group group(report, lab, "alignment");
      group.product(pass, up, {}, "aligned to 16");
      group.product(pass, up, {.alignment = 256}, "aligned to 256");
    }
    // One at a time: the operands' memory is filled anew for each type.
    const auto line = [&](const Variant& v, const std::string& label) {
      Group(report, lab, label).product(pass, up, v, label);
    };
    line({.dtype = DType::fp16, .result = DType::fp16}, "fp16");
    line({.dtype = DType::fp32, .result = DType::fp32, .tf32 = true}, "TF32");
    line({.dtype = DType::fp32, .result = DType::fp32}, "fp32");
  }
}

int run(int argc, char** argv) {
  Report report("products_bench", parse_options(argc, argv));
  const auto began = std::chrono::steady_clock::now();
  const bool quick = report.options().quick;
  std::printf("cuBLASLt %zu\n", cublasLtGetVersion());
  try {
    ProductLab lab(report);
    report.set_bandwidth(memcpy_bandwidth(), "copy of 1 GiB");
    lab.roofline();
    const auto part = [&](const std::string& name, const std::function<void()>& body) {
      if (!report.options().wants(name)) return;
      body();
      const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - began;
      std::printf("(%s ends at %.1f s)\n", name.c_str(), elapsed.count());
    };
    part("products", [&] {
      products(report, lab, "GPT-2 124M, rows 16384", kRows, 768);
      products(report, lab, "1.3B, rows 16384", kRows, 2048);
      if (quick) return;
      products(report, lab, "1.3B, rows 8192", kRows / 2, 2048);
      products(report, lab, "GPT-2 1.5B, rows 16384", kRows, 1600);
    });
    for (const int64_t c : {768, 2048}) {
      part("epilogues", [&] { epilogues(report, lab, c); });
      part("gradients", [&] { weight_gradients(report, lab, c); });
      part("logits", [&] { logits(report, lab, c); });
      part("workspaces", [&] { workspaces(report, lab, c); });
    }
    part("types", [&] { types(report, lab); });
  } catch (const std::exception& error) {
    report.fail("the bench", error.what());
  }
  return report.finish();
}

}  // namespace
}  // namespace gradus::bench

int main(int argc, char** argv) {
  try {
    return gradus::bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "products_bench: %s\n", error.what());
    return 1;
  }
}
