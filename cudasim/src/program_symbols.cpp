#include "program_symbols.h"

#include <cxxabi.h>
#include <elf.h>
#include <link.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

namespace cudasim {
namespace {

/// The program's symbols.
struct Symbols {
  struct Variable {
    size_t offset;  ///< in a thread's memory of the program
    size_t bytes;
  };
  std::vector<Variable> shared;
  std::map<uintptr_t, std::string> functions;  ///< by address in the file
};

/// Whether the variable called `name` stands in a function of device code.
bool is_shared(std::string_view name) {
  if (name.substr(0, 3) != "_ZZ") {
    return false;  // not a variable of a function
  }
  return name.find("6gradus4cuda") != std::string_view::npos ||
         name.find("_GLOBAL__N_") != std::string_view::npos;
}

/// The `count`th T at `offset` of the file; zeros beyond its end.
template <typename T>
T read(const std::vector<char>& file, size_t offset, size_t count = 0) {
  T value{};
  const size_t begin = offset + count * sizeof(T);
  if (begin + sizeof(T) <= file.size()) {
    std::memcpy(&value, file.data() + begin, sizeof(T));
  }
  return value;
}

Symbols read_symbols() {
  Symbols symbols;
  std::ifstream stream("/proc/self/exe", std::ios::binary);
  const std::vector<char> file(std::istreambuf_iterator<char>(stream), {});
  const auto header = read<ElfW(Ehdr)>(file, 0);
  for (size_t i = 0; i < header.e_shnum; ++i) {
    const auto section = read<ElfW(Shdr)>(file, header.e_shoff, i);
    if (section.sh_type != SHT_SYMTAB) {
      continue;
    }
    const auto strings = read<ElfW(Shdr)>(file, header.e_shoff, section.sh_link);
    for (size_t s = 0; s < section.sh_size / sizeof(ElfW(Sym)); ++s) {
      const auto symbol = read<ElfW(Sym)>(file, section.sh_offset, s);
      const size_t at = strings.sh_offset + symbol.st_name;
      if (symbol.st_shndx == SHN_UNDEF || at >= file.size()) {
        continue;
      }
      const char* name = file.data() + at;
      const auto type = ELF64_ST_TYPE(symbol.st_info);
      if (type == STT_TLS && is_shared(name)) {
        symbols.shared.push_back({symbol.st_value, symbol.st_size});
      } else if (type == STT_FUNC) {
        symbols.functions.emplace(symbol.st_value, name);
      }
    }
  }
  return symbols;
}

const Symbols& symbols() {
  static const Symbols all = read_symbols();
  return all;
}

/// Where the program was loaded, and the calling thread's memory of it.
struct Loaded {
  uintptr_t base = 0;
  std::byte* thread_memory = nullptr;
};

Loaded loaded() {
  Loaded result;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        // The first is the program itself.
        *static_cast<Loaded*>(out) = {info->dlpi_addr,
                                      static_cast<std::byte*>(info->dlpi_tls_data)};
        return 1;
      },
      &result);
  return result;
}

/// Empty where the table does not have it.
std::string function_name(const void* address) {
  const auto found = symbols().functions.find(reinterpret_cast<uintptr_t>(address) - loaded().base);
  if (found == symbols().functions.end()) {
    return {};
  }
  int status = 0;
  char* name = abi::__cxa_demangle(found->second.c_str(), nullptr, nullptr, &status);
  std::string result = status == 0 ? name : found->second;
  std::free(name);
  return result;
}

}  // namespace

void poison_shared_variables() {
  thread_local const Loaded program = loaded();
  if (program.thread_memory == nullptr) {
    return;
  }
  for (const Symbols::Variable& variable : symbols().shared) {
    std::memset(program.thread_memory + variable.offset, 0xff, variable.bytes);
  }
}

std::string kernel_name(const void* kernel) {
  std::string name = function_name(kernel);
  if (name.empty()) {
    return "a kernel";
  }
  for (const std::string_view nowhere : {"(anonymous namespace)::", "void "}) {
    for (size_t at; (at = name.find(nowhere)) != std::string::npos;) {
      name.erase(at, nowhere.size());
    }
  }
  // Without its parameters, which are in the last parentheses.
  int depth = 0;
  for (size_t i = name.size(); i-- > 0;) {
    depth += name[i] == ')' ? 1 : name[i] == '(' ? -1 : 0;
    if (depth == 0) {
      return name.substr(0, i);
    }
  }
  return name;
}

}  // namespace cudasim
