# What both cross toolchains share. Debian 12 has only libc and libstdc++ for riscv64, so a cross build links nothing
# else: JSON, CLI11, fmt and spdlog are used header-only (the cross compilers search /usr/include last, which holds
# exactly these architecture-independent headers), and the libraries of the host are hidden from find_library and
# find_package. A header that is there does not mean that its library is: code tests DG_HAVE_<LIBRARY>
# (cmake/dougong.cmake), never __has_include.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_C_COMPILER ${DG_CROSS_TRIPLE}-gcc)
set(CMAKE_CXX_COMPILER ${DG_CROSS_TRIPLE}-g++)
set(CMAKE_FIND_ROOT_PATH /usr/${DG_CROSS_TRIPLE})
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE BOTH)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
find_program(DG_CROSS_EMULATOR_PATH ${DG_CROSS_EMULATOR})
if(DG_CROSS_EMULATOR_PATH)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${DG_CROSS_EMULATOR_PATH} ${DG_CROSS_EMULATOR_ARGUMENTS})
endif()
