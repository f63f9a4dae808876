# The kernels (kernels/kernels.cpp) are compiled once per instruction set, as object libraries that join dg_backend_cpu.
# A new family is one line here and one in isa.cpp. Kernels are optimised in every preset: at -O1 nothing vectorises, the
# tests of debug builds would take hours, and they would test other code than the one shipped.
function(dg_cpu_isa name)
  set(target dg_cpu_${name})
  add_library(${target} OBJECT ${CMAKE_CURRENT_SOURCE_DIR}/backends/cpu/kernels/kernels.cpp)
  target_link_libraries(${target} PRIVATE dg_flags)
  target_compile_definitions(${target} PRIVATE DG_ISA_NAMESPACE=isa_${name} DG_ISA_TABLE=kernels_${name} DG_ISA_NAME="${name}")
  # -fno-exceptions: their personality routine would be a shared (COMDAT) symbol. -fno-trapping-math: nobody looks at
  # floating-point traps, and selects vectorise.
  target_compile_options(${target} PRIVATE -O3 -ffp-contract=fast -fno-trapping-math -fno-exceptions -fno-rtti
                         -fno-asynchronous-unwind-tables ${ARGN})
  target_sources(dg_backend_cpu PRIVATE $<TARGET_OBJECTS:${target}>)
  set_property(GLOBAL APPEND PROPERTY DG_CPU_ISA_TARGETS ${target})
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
  dg_cpu_isa(generic -march=armv8-a)
  dg_cpu_isa(dotprod -march=armv8.2-a+dotprod+fp16)
else()
  dg_cpu_isa(generic)
endif()
