#include "backends/cpu/isa.h"

#include <fmt/format.h>

#include <cstdint>

#include "backends/cpu/kernels/kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__) || defined(__riscv)
#include <sys/auxv.h>
#endif

namespace dg {

// DG_CPU_FAMILIES (isa.cmake): the families of this build, as DG_FAMILY(amx) DG_FAMILY(generic).
#define DG_FAMILY(name) extern const KernelTable kernels_##name;
DG_CPU_FAMILIES
#undef DG_FAMILY

namespace {

struct Isa {
  const char* name;
  const char* needs;  // for people
  bool (*usable)();
};

bool always() { return true; }

// The kernels of a family, nullptr when this build leaves it out.
const KernelTable* built_kernels(std::string_view name) {
#define DG_FAMILY(family) \
  if (name == #family) return &kernels_##family;
  DG_CPU_FAMILIES
#undef DG_FAMILY
  return nullptr;
}

#if defined(__x86_64__)
struct Cpuid {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  Cpuid(unsigned leaf, unsigned subleaf) {
    if (!__get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx)) eax = ebx = ecx = edx = 0;
  }
};

bool all_bits(uint64_t value, uint64_t mask) { return (value & mask) == mask; }

// The registers the operating system saves (XCR0), 0 when it does not say.
uint64_t saved_state() {
  if (!all_bits(Cpuid(1, 0).ecx, 1u << 27)) return 0;  // OSXSAVE
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

bool has_avx2() {
  constexpr unsigned kFma = 1u << 12, kPopcnt = 1u << 23, kAvx = 1u << 28, kF16c = 1u << 29;
  constexpr unsigned kBmi1 = 1u << 3, kAvx2 = 1u << 5, kBmi2 = 1u << 8, kLzcnt = 1u << 5;
  return all_bits(saved_state(), 0x6) && all_bits(Cpuid(1, 0).ecx, kFma | kPopcnt | kAvx | kF16c) &&
         all_bits(Cpuid(7, 0).ebx, kBmi1 | kAvx2 | kBmi2) && all_bits(Cpuid(0x80000001u, 0).ecx, kLzcnt);
}

bool has_avx512() {
  constexpr unsigned kF = 1u << 16, kDq = 1u << 17, kCd = 1u << 28, kBw = 1u << 30, kVl = 1u << 31;
  return has_avx2() && all_bits(saved_state(), 0xe6) && all_bits(Cpuid(7, 0).ebx, kF | kDq | kCd | kBw | kVl);
}

bool has_avx512_vnni() {
  constexpr unsigned kVbmi = 1u << 1, kVnni = 1u << 11, kBf16 = 1u << 5;
  return has_avx512() && all_bits(Cpuid(7, 0).ecx, kVbmi | kVnni) && all_bits(Cpuid(7, 1).eax, kBf16);
}

bool has_avx_vnni() { return has_avx2() && all_bits(Cpuid(7, 1).eax, 1u << 4); }

// Linux hands out the tile registers (8 KiB of state per thread) on request, once per process.
bool has_amx() {
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  if (!has_avx512_vnni() || !all_bits(saved_state(), 0x60000) || !all_bits(Cpuid(7, 0).edx, kBf16 | kTile | kInt8)) return false;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}
#elif defined(__aarch64__)
bool has_dotprod() {
  constexpr unsigned long kFphp = 1ul << 9, kAsimdhp = 1ul << 10, kAsimddp = 1ul << 20;
  constexpr unsigned long kAll = kFphp | kAsimdhp | kAsimddp;
  return (getauxval(AT_HWCAP) & kAll) == kAll;
}
bool has_i8mm() {
  constexpr unsigned long kI8mm = 1ul << 13, kBf16 = 1ul << 14;
  return has_dotprod() && (getauxval(AT_HWCAP2) & (kI8mm | kBf16)) == (kI8mm | kBf16);
}
bool has_sve2() {
  constexpr unsigned long kSve = 1ul << 22, kSve2 = 1ul << 1, kSveI8mm = 1ul << 9;
  return has_i8mm() && (getauxval(AT_HWCAP) & kSve) && (getauxval(AT_HWCAP2) & (kSve2 | kSveI8mm)) == (kSve2 | kSveI8mm);
}
#elif defined(__riscv)
// The bit `v` of older vendors' kernels means vectors of the draft 0.7.1, which no instruction of ours fits. The same vsetvl
// exists there, but e32 with both agnostic bits is no valid type: it sets the sign bit of vtype.
bool has_rvv() {
  if (!(getauxval(AT_HWCAP) & 1ul << ('v' - 'a'))) return false;
  constexpr long kE32 = 0xd0;
  long type, vlenb, elements;
  asm volatile(".insn r 0x57, 7, 0x40, %0, x0, %2\n\tcsrr %1, 0xc21" : "=&r"(elements), "=&r"(type) : "r"(kE32));
  if (type != kE32) return false;
  asm volatile("csrr %0, 0xc22" : "=r"(vlenb));
  return vlenb >= 16;
}
#endif

// Best first. A new family is one row here and one line in isa.cmake.
constexpr Isa kIsas[] = {
#if defined(__x86_64__)
    {"amx", "AMX tiles, int8 and bf16", has_amx},        {"avx512_vnni", "AVX-512 VNNI, BF16, VBMI", has_avx512_vnni},
    {"avx512", "AVX-512 F, BW, DQ, VL, CD", has_avx512}, {"avx_vnni", "AVX2 with AVX-VNNI", has_avx_vnni},
    {"avx2", "AVX2, FMA, F16C, BMI", has_avx2},          {"generic", "x86-64", always},
#elif defined(__aarch64__)
    {"sve2", "SVE2 with matrix products of int8 and bf16", has_sve2},
    {"i8mm", "Armv8.6 matrix products of int8 and bf16", has_i8mm},
    {"dotprod", "Armv8.2 dot product and half precision", has_dotprod},
    {"generic", "Armv8 NEON", always},
#else
#if defined(__riscv)
    {"rvv", "RVV 1.0", has_rvv},
#endif
    {"generic", "any processor of this family", always},
#endif
};

}  // namespace

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas)
    if (built_kernels(isa.name) && isa.usable()) names.push_back(isa.name);
  return names;
}

Result<const KernelTable*> find_kernels(std::string_view name) {
  const std::vector<std::string> usable = usable_isas();
  const std::string choice = fmt::format("use one of: auto, {}", fmt::join(usable, ", "));
  for (const Isa& isa : kIsas) {
    const KernelTable* const kernels = built_kernels(isa.name);
    if (name != isa.name && (name != "auto" || isa.name != usable.front())) continue;
    if (!kernels) return input_error(fmt::format("--isa {}: this build of the program leaves it out; {}", name, choice));
    if (!isa.usable())
      return input_error(fmt::format("--isa {}: this processor or operating system lacks {}; {}", name, isa.needs, choice));
    return kernels;
  }
  return input_error(fmt::format("--isa {}: unknown instruction set; {}", name, choice));
}

}  // namespace dg
