# 64-bit Arm from an x86 host: Debian's g++-aarch64-linux-gnu, run under qemu-user. See cross_common.cmake.
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(DG_CROSS_TRIPLE aarch64-linux-gnu)
set(DG_CROSS_EMULATOR qemu-aarch64-static)
include(${CMAKE_CURRENT_LIST_DIR}/cross_common.cmake)
