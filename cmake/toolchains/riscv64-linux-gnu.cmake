# 64-bit RISC-V from an x86 host: Debian's g++-riscv64-linux-gnu, run under qemu-user. See cross_common.cmake.
set(CMAKE_SYSTEM_PROCESSOR riscv64)
set(DG_CROSS_TRIPLE riscv64-linux-gnu)
set(DG_CROSS_EMULATOR qemu-riscv64-static)
include(${CMAKE_CURRENT_LIST_DIR}/cross_common.cmake)
