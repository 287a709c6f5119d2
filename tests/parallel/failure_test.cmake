# Starts failing_program as RANKS ranks in the given WAY and checks what the user sees: all ranks
# gone within seconds, an exit code that is not 0, and the failing rank's message once.

set(within 10)     # seconds from the start of mpirun to its end
set(watchdog 100)  # seconds; out of reach but where it is what is tested
set(grace 0)       # seconds that ranks may outlive mpirun
set(code_expected "[1-9][0-9]*")
set(message "")   # must be printed exactly once, wherever its lines are broken
set(also)         # must be printed
set(command ${MPIRUN} -np ${RANKS} ${PROGRAM} ${WAY})

if(WAY STREQUAL "plain")
  # MPI_Init would fail with such a transport; a plain start must not call it.
  set(command ${CMAKE_COMMAND} -E env OMPI_MCA_btl=no_such_transport OMPI_MCA_pml=none
      ${PROGRAM} ${WAY})
  set(code_expected 0)
  set(message "rank 0 of 1, groups of 1")
elseif(WAY STREQUAL "wrong_launcher")
  # Several copies by a launcher that this MPI does not know: never train each on its own.
  set(command ${CMAKE_COMMAND} -E env OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=2
      ${PROGRAM} plain)
  set(message "gradus: MPI error: (mpirun started 4 ranks, but MPI sees 1|started as one of several ranks, but this build of gradus has no MPI)")
elseif(WAY STREQUAL "environment")
  # An error of every rank before there is anything but MPI.
  set(command ${CMAKE_COMMAND} -E env GRADUS_COMMUNICATION_TIMEOUT=soon ${command})
  set(message "gradus: rank [0-2] of 3: config error: GRADUS_COMMUNICATION_TIMEOUT=soon is not a number of seconds above 0")
elseif(WAY STREQUAL "throw")
  set(message "gradus: rank 1 of 3: data error: shard 7 is torn")
elseif(WAY STREQUAL "throw_early")
  set(message "gradus: rank 0 of 3: data error: shard 7 is torn")
elseif(WAY STREQUAL "everyone")
  set(message "config error: train.yaml:3: every rank reads this")
elseif(WAY STREQUAL "unknown")
  set(message "gradus: rank 1 of 3: error: an exception that is not a std::exception")
elseif(WAY STREQUAL "pending")
  set(message "gradus: rank 1 of 3: numeric error: loss is not finite")
elseif(WAY STREQUAL "abort")
  set(message "gradus: rank 1 of 3: i/o error: disk is full")
elseif(WAY STREQUAL "exit")
  set(message "exiting improperly")  # words of mpirun itself, of Open MPI 4 and 5
elseif(WAY STREQUAL "kill")
  set(message "rank 1 .* exited on signal 9")
elseif(WAY STREQUAL "kill_unseen" OR WAY STREQUAL "kill_busy")
  # By a launcher that lets the others go on: they have to notice, and do, well before the watchdog.
  set(command ${MPIRUN} -np ${RANKS} --enable-recovery ${PROGRAM} ${WAY})
  set(code_expected "[0-9]+")  # mpirun's affair, once it was told not to mind
  set(grace 15)                # Open MPI 5 ends at the first abort, and leaves the others to end themselves
  set(message "MPI error: rank 1 .process [0-9]+ on this machine. ended before the job did")
elseif(WAY STREQUAL "segfault")
  set(message "rank 1 .* exited on signal 11")
elseif(WAY STREQUAL "return")
  # Leaves while the others go on: only the watchdog can tell.
  set(watchdog 2)
  set(message "is stuck: no progress for [0-9.]+ s")
elseif(WAY STREQUAL "code")
  set(code_expected 5)
elseif(WAY STREQUAL "size")
  set(message "all_gather 1 of group dp .*the ranks disagree about the operation or its size")
elseif(WAY STREQUAL "sleep")
  set(watchdog 2)
  set(message "MPI error: barrier 0 of group world .ranks 0 1 2, 0 bytes. is stuck: no progress for [0-9.]+ s")
  set(also "called by ranks 0 2"
           "rank 1 has not called it: it is not communicating; its last call was all_reduce 0 of group dp .ranks 0 1 2, 4194304 bytes.")
elseif(WAY STREQUAL "sleep_exchange")
  set(watchdog 2)
  set(message "is stuck: no progress for [0-9.]+ s")
elseif(WAY STREQUAL "stop_first")
  # Rank 0, which decides who prints, is the one that is gone.
  set(watchdog 1)
  set(message "is stuck: no progress for [0-9.]+ s")
  set(also "rank 0 does not answer: it is stopped or gone")
elseif(WAY STREQUAL "stop")
  set(watchdog 2)
  set(message "is stuck: no progress for [0-9.]+ s")
  set(also "rank 1 does not answer: it is stopped or gone")
else()
  message(FATAL_ERROR "failing_program knows no way '${WAY}'")
endif()

execute_process(COMMAND ${command} ${watchdog} TIMEOUT ${within} RESULT_VARIABLE code
                OUTPUT_VARIABLE output ERROR_VARIABLE output)
string(REPLACE ";" "," output "${output}")  # a list's separator to CMake
message("${output}\nexit code: ${code}")

if(NOT code MATCHES "^${code_expected}$")
  message(SEND_ERROR "exit code (or end) '${code}' instead of ${code_expected}")
endif()
# Every line that gradus prints as the job's error.
string(REGEX MATCHALL "gradus: [^\n]*" reports "${output}")
list(LENGTH reports count)
if(count GREATER 1)
  message(SEND_ERROR "${count} messages of gradus instead of one")
endif()
string(REGEX REPLACE "[ \n]+" " " flowing "${output}")  # mpirun breaks lines where it likes
if(message)
  string(REGEX MATCHALL "${message}" found "${flowing}")
  list(LENGTH found count)
  if(NOT count EQUAL 1)
    message(SEND_ERROR "found ${count} times instead of once: ${message}")
  endif()
endif()
foreach(expected IN LISTS also)
  if(NOT output MATCHES "${expected}")
    message(SEND_ERROR "not found: ${expected}")
  endif()
endforeach()

# mpirun is gone; so must its ranks be.
string(REGEX REPLACE "([][+.*()^$?{}|\\\\])" "\\\\\\1" program_pattern "${PROGRAM}")
foreach(second RANGE ${grace})
  execute_process(COMMAND pgrep -f "^${program_pattern} ${WAY} ${watchdog}" OUTPUT_VARIABLE left
                  RESULT_VARIABLE searched)
  if(NOT searched EQUAL 0 OR second EQUAL grace)
    break()
  endif()
  execute_process(COMMAND ${CMAKE_COMMAND} -E sleep 1)
endforeach()
if(NOT searched MATCHES "^[01]$")
  message(SEND_ERROR "pgrep (package procps) is needed to look for ranks: ${searched}")
elseif(left)
  message(SEND_ERROR "ranks are still alive: ${left}")
endif()
