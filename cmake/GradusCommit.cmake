# Writes HEADER with the commit that the files in SOURCE are of, or an empty one where that is not known:
# without git, or where SOURCE is no repository of its own. Run as a script; touches HEADER only to change it.

cmake_minimum_required(VERSION 3.25)

set(commit "")
find_program(git git)
if(git)
  execute_process(COMMAND "${git}" -C "${SOURCE}" rev-parse --show-toplevel --short=12 HEAD
                  OUTPUT_VARIABLE found RESULT_VARIABLE failed ERROR_QUIET
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
  string(REPLACE "\n" ";" found "${found}")
  if(NOT failed)
    list(GET found 0 root)
    file(REAL_PATH "${root}" root)
    file(REAL_PATH "${SOURCE}" source)
    if(root STREQUAL source)
      list(GET found 1 commit)
    endif()
  endif()
endif()
file(CONFIGURE OUTPUT "${HEADER}" CONTENT "#pragma once\n\n#define GRADUS_COMMIT \"@commit@\"\n" @ONLY)
