# Fails where an object of one instruction set defines a symbol that the linker may give to another's code: a weak or
# global function compiled for a newer machine would then run on an older one. Only <isa>::table() is shared, or its part;
# of the kernels of 8 bits, data.
# cmake -DNM=nm -DOBJECTS=a.o;b.o -P isa_symbols.cmake
set(seen 0)
foreach(object IN LISTS OBJECTS)
  if(NOT object MATCHES "/(isa|int8)_([a-z0-9_]+)\\.cpp")
    continue()
  endif()
  if(CMAKE_MATCH_1 STREQUAL isa)
    set(allowed "^[0-9a-f]+ T vggfast::cpu::${CMAKE_MATCH_2}::(table|tiles)\\(\\)$")
  else()
    set(allowed "^$")
  endif()
  execute_process(COMMAND ${NM} -C --defined-only --extern-only ${object} OUTPUT_VARIABLE text
    COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[0-9a-f]+ [TWi] [^\n]+" lines "${text}")  # functions, not data
  if(NOT lines MATCHES "${allowed}")
    message(FATAL_ERROR "${object} is to define table() or a part of it alone, and defines: ${lines}")
  endif()
  math(EXPR seen "${seen} + 1")
endforeach()
if(seen EQUAL 0)
  message(FATAL_ERROR "no isa_*.cpp among the objects: ${OBJECTS}")
endif()
message(STATUS "${seen} objects define their table alone")
