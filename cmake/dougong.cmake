# Helpers shared by every CMakeLists.txt of the tree.

# Flags of all our own targets; -Werror comes from the presets (DOUGONG_WERROR).
option(DOUGONG_WERROR "Warnings are errors" OFF)
add_library(dg_flags INTERFACE)
target_include_directories(dg_flags INTERFACE ${CMAKE_SOURCE_DIR}/src)
# Parameter structs are filled with designated initialisers, which may leave members out.
target_compile_options(dg_flags INTERFACE -Wall -Wextra -Wno-missing-field-initializers -fno-math-errno
                       $<$<BOOL:${DOUGONG_WERROR}>:-Werror>)
target_compile_definitions(dg_flags INTERFACE DG_BUILD_VERSION="${PROJECT_VERSION}")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # g++ 12 sees overlapping copies in std::string's operator+ at -O2 where there are none (GCC bug 105329).
  target_compile_options(dg_flags INTERFACE -Wno-restrict)
endif()
if(CMAKE_UNITY_BUILD AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # A type of an anonymous namespace inside a class of the same source file: fine, but no longer in the compiler's main file.
  target_compile_options(dg_flags INTERFACE -Wno-subobject-linkage)
endif()
target_link_libraries(dg_flags INTERFACE Threads::Threads)

# Test code is compiled once and run for seconds: presets choose less optimisation, and sanitizers' undefined-behaviour checks
# for the tested code alone, which are most of a clean build's time.
set(DOUGONG_TEST_FLAGS "" CACHE STRING "Compiler options of test executables, after all others")
separate_arguments(dg_test_flags NATIVE_COMMAND "${DOUGONG_TEST_FLAGS}")
add_library(dg_test_flags INTERFACE)
target_compile_options(dg_test_flags INTERFACE ${dg_test_flags})

# fmt and spdlog: the distribution's libraries natively, header-only when cross-building (no target library exists).
if(CMAKE_CROSSCOMPILING)
  target_compile_definitions(dg_flags INTERFACE FMT_HEADER_ONLY SPDLOG_FMT_EXTERNAL)
else()
  find_package(fmt REQUIRED)
  find_package(spdlog REQUIRED)
  set(DG_SPDLOG_LIBRARY spdlog::spdlog)
  target_link_libraries(dg_flags INTERFACE fmt::fmt)
endif()
if(DOUGONG_COVERAGE)
  target_compile_options(dg_flags INTERFACE --coverage)
  target_link_options(dg_flags INTERFACE --coverage)
endif()
if(DOUGONG_STATIC)
  target_link_options(dg_flags INTERFACE -static)
endif()

# dg_optional_library(HWLOC hwloc.h hwloc): DG_HAVE_HWLOC is 0 or 1 in every source file, and DG_HWLOC_LIBRARY is what
# a floor names in LIBS (empty when absent). Cross builds have none of these: the code has a way without each of them.
function(dg_optional_library name header library)
  find_path(DG_${name}_INCLUDE_PATH ${header})
  find_library(DG_${name}_LIBRARY_PATH ${library})
  set(have 0)
  if(DG_${name}_INCLUDE_PATH AND DG_${name}_LIBRARY_PATH)
    set(have 1)
    set(DG_${name}_LIBRARY ${DG_${name}_LIBRARY_PATH} PARENT_SCOPE)
  endif()
  set(DG_HAVE_${name} ${have} PARENT_SCOPE)
  target_compile_definitions(dg_flags INTERFACE DG_HAVE_${name}=${have})
endfunction()
dg_optional_library(HWLOC hwloc.h hwloc)
dg_optional_library(LIBEDIT histedit.h edit)

# dg_floor(base DEPS a b): one static library dg_<name> per folder of src/, from all its .cpp files but *_test.cpp.
# The unit tests beside the code become the executable test_<name>; TEST_DEPS and TEST_LIBS are linked to it alone.
function(dg_floor name)
  cmake_parse_arguments(F "RECURSE" "DIR" "DEPS;LIBS;EXCLUDE;TEST_DEPS;TEST_LIBS" ${ARGN})
  if(NOT F_DIR)
    set(F_DIR ${name})
  endif()
  if(F_RECURSE)
    file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${F_DIR}/*.cpp)
  else()
    file(GLOB sources CONFIGURE_DEPENDS ${F_DIR}/*.cpp)
  endif()
  set(tests ${sources})
  list(FILTER tests INCLUDE REGEX "_test\\.cpp$")
  list(FILTER sources EXCLUDE REGEX "_test\\.cpp$")
  foreach(pattern ${F_EXCLUDE})
    list(FILTER sources EXCLUDE REGEX "${pattern}")
  endforeach()
  list(TRANSFORM F_DEPS PREPEND dg_)
  list(TRANSFORM F_TEST_DEPS PREPEND dg_)
  if(sources)
    add_library(dg_${name} STATIC ${sources})
    target_link_libraries(dg_${name} PUBLIC dg_flags ${F_DEPS} ${F_LIBS})
  else()
    add_library(dg_${name} INTERFACE)
    target_link_libraries(dg_${name} INTERFACE dg_flags ${F_DEPS} ${F_LIBS})
  endif()
  if(tests AND DOUGONG_TESTS)
    add_executable(test_${name} ${tests})
    target_link_libraries(test_${name} PRIVATE dg_${name} ${F_TEST_DEPS} ${F_TEST_LIBS} dg_gtest)
    target_compile_definitions(test_${name} PRIVATE DG_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
    add_test(NAME ${name} COMMAND test_${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  endif()
endfunction()

# dg_script_tests(): every tests/<area>/<name>_test.sh or .mjs is a test that prints TAP lines (`ok 1 - what`,
# `not ok 2 - what`, `ok 3 - what # SKIP why`), which tools/ci/run_tests counts. It runs in the source folder with
# DOUGONG_BIN = the program built here. Label `host`: it needs this machine's programs, so it is left out of cross builds.
function(dg_script_tests)
  if(CMAKE_CROSSCOMPILING)
    return()
  endif()
  file(GLOB scripts CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/*/*_test.sh ${CMAKE_SOURCE_DIR}/tests/*/*_test.mjs)
  foreach(script ${scripts})
    cmake_path(GET script EXTENSION extension)
    cmake_path(GET script STEM stem)
    cmake_path(GET script PARENT_PATH folder)
    cmake_path(GET folder FILENAME area)
    string(REGEX REPLACE "_test$" "" stem ${stem})
    if(extension STREQUAL ".mjs")
      set(interpreter node)
    else()
      set(interpreter bash)
    endif()
    add_test(NAME ${area}_${stem}_script COMMAND ${interpreter} ${script} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
    set_tests_properties(${area}_${stem}_script PROPERTIES LABELS host
      ENVIRONMENT "DOUGONG_BIN=$<TARGET_FILE:dougong>" FAIL_REGULAR_EXPRESSION "(^|\n)not ok")
  endforeach()
endfunction()
