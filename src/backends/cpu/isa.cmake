# The kernels (kernels/kernels.cpp) are compiled once per instruction set, as object libraries that join dg_backend_cpu.
# A new family is one line here and one in isa.cpp. Kernels are optimised in every preset: at -O1 nothing vectorises, the
# tests of debug builds would take hours, and they would test other code than the one shipped.
# -Wno-*uninitialized: GCC 12 warns about its own AVX-512 headers. -fno-exceptions: their personality routine would be a shared
# (COMDAT) symbol. -fno-trapping-math: nobody looks at floating-point traps, and selects vectorise.
set(dg_kernel_flags -O3 -ffp-contract=fast -fno-trapping-math -fno-exceptions -fno-rtti -fno-asynchronous-unwind-tables
                    -Wno-maybe-uninitialized -Wno-uninitialized)

# The families of this build; empty: all of the processor's architecture. The portable one, `generic`, is always there.
set(DOUGONG_CPU_FAMILIES "" CACHE STRING "Instruction set families to build beside generic, as amx;avx2 (empty: all)")

# dg_cpu_wanted(name variable): whether this build has the family `name`.
function(dg_cpu_wanted name variable)
  set(wanted OFF)
  if(name STREQUAL generic OR NOT DOUGONG_CPU_FAMILIES OR name IN_LIST DOUGONG_CPU_FAMILIES)
    set(wanted ON)
  endif()
  set(${variable} ${wanted} PARENT_SCOPE)
endfunction()

function(dg_cpu_isa name)
  dg_cpu_wanted(${name} wanted)
  if(NOT wanted)
    return()
  endif()
  set(target dg_cpu_${name})
  add_library(${target} OBJECT ${CMAKE_CURRENT_SOURCE_DIR}/backends/cpu/kernels/kernels.cpp)
  target_link_libraries(${target} PRIVATE dg_flags)
  target_compile_definitions(${target} PRIVATE DG_ISA_NAMESPACE=isa_${name} DG_ISA_TABLE=kernels_${name} DG_ISA_NAME="${name}")
  target_compile_options(${target} PRIVATE ${dg_kernel_flags} ${ARGN})
  target_sources(dg_backend_cpu PRIVATE $<TARGET_OBJECTS:${target}>)
  set_property(GLOBAL APPEND PROPERTY DG_CPU_ISA_TARGETS ${target})
  set_property(GLOBAL APPEND_STRING PROPERTY DG_CPU_FAMILIES " DG_FAMILY(${name})")
endfunction()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(dg_avx2 -mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt -mpopcnt)
  dg_cpu_isa(generic)
  dg_cpu_isa(avx2 ${dg_avx2} -mtune=haswell)
  set(dg_avx512 ${dg_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd -mprefer-vector-width=512)
  set(dg_vnni ${dg_avx512} -mavx512vnni -mavx512bf16 -mavx512vbmi -mtune=icelake-server)
  dg_cpu_isa(avx_vnni ${dg_avx2} -mavxvnni -mtune=haswell)
  dg_cpu_isa(avx512 ${dg_avx512} -mtune=skylake-avx512)
  dg_cpu_isa(avx512_vnni ${dg_vnni})
  dg_cpu_isa(amx ${dg_vnni} -mamx-tile -mamx-int8 -mamx-bf16)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  # The first scheduler of GCC moves loads up until the sums of the product loops no longer fit the registers (docs/kernels_isa.md).
  list(APPEND dg_kernel_flags -fno-schedule-insns)
  set(dg_armv8_2 -march=armv8.2-a+dotprod+fp16)
  dg_cpu_isa(generic -march=armv8-a)
  dg_cpu_isa(dotprod ${dg_armv8_2})
  dg_cpu_isa(i8mm ${dg_armv8_2}+i8mm+bf16)
  dg_cpu_isa(sve2 ${dg_armv8_2}+i8mm+bf16+sve2)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "riscv64")
  dg_cpu_isa(generic)
  # g++ 12 has no vector intrinsics for RISC-V. Where clang 19 is installed (tools/setup --all) it compiles this one object; where
  # it is not, the program comes without the family.
  find_program(DG_CLANG_RVV NAMES clang++-19)
  dg_cpu_wanted(rvv wanted)
  if(DG_CLANG_RVV AND wanted)
    set(source ${CMAKE_CURRENT_SOURCE_DIR}/backends/cpu/kernels/kernels.cpp)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/dg_cpu_rvv.o)
    set(werror $<$<BOOL:${DOUGONG_WERROR}>:-Werror>)
    add_custom_command(
      OUTPUT ${object}
      COMMAND ${DG_CLANG_RVV} --target=riscv64-linux-gnu --gcc-toolchain=/usr -march=rv64gcv -std=c++20 -I${CMAKE_CURRENT_SOURCE_DIR}
              -Wall -Wextra -Wno-missing-field-initializers -Wno-unknown-warning-option "${werror}" -fno-math-errno ${dg_kernel_flags}
              -DDG_ISA_NAMESPACE=isa_rvv -DDG_ISA_TABLE=kernels_rvv -DDG_ISA_NAME=\"rvv\" -MD -MF ${object}.d -c ${source} -o ${object}
      DEPENDS ${source} DEPFILE ${object}.d COMMENT "Building RVV kernels with clang 19" VERBATIM COMMAND_EXPAND_LISTS)
    target_sources(dg_backend_cpu PRIVATE ${object})
    set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
    set_property(GLOBAL APPEND_STRING PROPERTY DG_CPU_FAMILIES " DG_FAMILY(rvv)")
    add_library(dg_cpu_rvv OBJECT IMPORTED GLOBAL)
    set_target_properties(dg_cpu_rvv PROPERTIES IMPORTED_OBJECTS ${object})
    set_property(GLOBAL APPEND PROPERTY DG_CPU_ISA_TARGETS dg_cpu_rvv)
  endif()
else()
  dg_cpu_isa(generic)
endif()

get_property(families GLOBAL PROPERTY DG_CPU_FAMILIES)
foreach(name ${DOUGONG_CPU_FAMILIES})
  if(NOT families MATCHES "DG_FAMILY\\(${name}\\)")
    message(WARNING "DOUGONG_CPU_FAMILIES: ${name} is no instruction set family here; this build has:${families}")
  endif()
endforeach()
set_source_files_properties(${CMAKE_CURRENT_SOURCE_DIR}/backends/cpu/isa.cpp PROPERTIES COMPILE_DEFINITIONS "DG_CPU_FAMILIES=${families}")
