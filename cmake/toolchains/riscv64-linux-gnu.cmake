# 64-bit RISC-V from an x86 host: Debian's g++-riscv64-linux-gnu, run under qemu-user. See cross_common.cmake.
set(CMAKE_SYSTEM_PROCESSOR riscv64)
set(DG_CROSS_TRIPLE riscv64-linux-gnu)
set(DG_CROSS_EMULATOR qemu-riscv64-static)
# qemu has no vectors unless asked; other lengths: tools/ci/run_isa_families.
set(DG_CROSS_EMULATOR_ARGUMENTS -cpu rv64,v=true,vlen=256,vext_spec=v1.0)
include(${CMAKE_CURRENT_LIST_DIR}/cross_common.cmake)
