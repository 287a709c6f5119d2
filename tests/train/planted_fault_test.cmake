# Starts PROGRAM, a layouts test with a fault in it, as RANKS ranks with the test FILTER (and ARGUMENT, if
# there is one), and succeeds only if the fault was found in the way that a fault of training is to be found: every rank ran the test to its
# end, and an expectation failed that prints FOUND. A crash, an exception, a job that the watchdog or MPI
# ended, and a fault that nobody noticed are failures.

execute_process(COMMAND ${MPIRUN} -np ${RANKS} ${PROGRAM} --gtest_brief=1 --gtest_color=no
                        --gtest_filter=${FILTER} ${ARGUMENT}
                TIMEOUT 120 RESULT_VARIABLE code OUTPUT_VARIABLE output ERROR_VARIABLE output)
string(REPLACE ";" "," output "${output}")  # a list's separator to CMake
string(LENGTH "${output}" length)
if(length GREATER 4000)
  string(SUBSTRING "${output}" 0 4000 beginning)
  string(APPEND beginning "\n… ${length} characters")
else()
  set(beginning "${output}")
endif()
message("${beginning}\nexit code: ${code}")

if(NOT code EQUAL 1)
  message(SEND_ERROR "exit code (or end) '${code}' instead of 1, that of a failed test")
endif()
if(NOT output MATCHES "Failure\n" OR NOT output MATCHES "${FOUND}")
  message(SEND_ERROR "no expectation failed that prints: ${FOUND}")
endif()
# The last words of a rank: of one on which the test failed, or passed while it failed on another.
string(REGEX MATCHALL "\\[  PASSED  \\] [01] test" ends "${output}")
list(LENGTH ends count)
if(NOT count EQUAL RANKS)
  message(SEND_ERROR "${count} of ${RANKS} ranks ran the test to its end")
endif()
foreach(other "C\\+\\+ exception" "gradus: " "on signal" "Sanitizer")
  if(output MATCHES "${other}")
    message(SEND_ERROR "ended otherwise than by an expectation: ${other}")
  endif()
endforeach()
