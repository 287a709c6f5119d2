# Faults planted into parallel training, each of which train.layouts must find: a test that cannot fail
# proves nothing. A mutant is the layouts test linked with one source file in which one place was changed;
# it comes before the libraries, so the linker takes it instead of theirs.

# gradus_planted_fault(NAME FILE source FIND text… PLANT text… RANKS n FOUND regex [FILTER tests])
# Each FIND must be in the file exactly once. The fault is found when an expectation fails that prints
# FOUND; a crash, a hang or a fault that goes unnoticed fails the test.
function(gradus_planted_fault name)
  cmake_parse_arguments(ARG "" "FILE;RANKS;FOUND;FILTER" "FIND;PLANT" ${ARGN})
  set(source "${PROJECT_SOURCE_DIR}/src/${ARG_FILE}")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${source}")
  # Semicolons and brackets mean something to lists.
  file(READ "${source}" text)
  foreach(find plant IN ZIP_LISTS ARG_FIND ARG_PLANT)
    string(REPLACE "@semicolon@" ";" find "${find}")
    string(REPLACE "@semicolon@" ";" plant "${plant}")
    string(FIND "${text}" "${find}" first)
    string(FIND "${text}" "${find}" last REVERSE)
    if(first EQUAL -1 OR NOT first EQUAL last)
      message(FATAL_ERROR "planted fault ${name}: src/${ARG_FILE} no longer has exactly one\n  ${find}")
    endif()
    string(REPLACE "${find}" "${plant}" text "${text}")
  endforeach()
  get_filename_component(file_name "${ARG_FILE}" NAME)
  set(mutant "${CMAKE_CURRENT_BINARY_DIR}/planted_faults/${name}/${file_name}")
  set(present "")
  if(EXISTS "${mutant}")
    file(READ "${mutant}" present)
  endif()
  if(NOT text STREQUAL present)
    file(WRITE "${mutant}" "${text}")
  endif()

  set(target "planted_fault_${name}")
  add_executable(${target} "${mutant}" $<TARGET_OBJECTS:train_layouts_test>)
  target_link_libraries(${target} PRIVATE gradus_options gradus_test_support gradus_parallel gradus_train
                                          GTest::gtest GTest::gmock)
  set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY
                                             "${CMAKE_BINARY_DIR}/tests/planted_faults")
  if(NOT ARG_FILTER)
    set(ARG_FILTER Layouts.GradientsNormsAndLossCurvesAreThoseOfOneRank)
  endif()
  add_test(NAME train.planted_fault.${name}
           COMMAND ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG} ${ARG_RANKS} $<TARGET_FILE:${target}>
                   --gtest_brief=1 --gtest_filter=${ARG_FILTER})
  set_tests_properties(train.planted_fault.${name} PROPERTIES
    PASS_REGULAR_EXPRESSION "${ARG_FOUND}" FAIL_REGULAR_EXPRESSION "is stuck;on signal;AddressSanitizer"
    TIMEOUT 300 PROCESSORS ${ARG_RANKS} ENVIRONMENT "${GRADUS_MPI_TEST_ENVIRONMENT}")
endfunction()

# Tensor parallelism.
gradus_planted_fault(input_gradient_not_summed FILE parallel/tensor_parallel.cpp
  FIND "return group_->all_reduce(x, dfull, dfull)" PLANT "return Pending()"
  RANKS 2 FOUND "block.0.ln1.weight, step 0")
gradus_planted_fault(row_parallel_output_not_summed FILE parallel/tensor_parallel.cpp
  FIND "group_->all_reduce(x, full, full).wait(x)" PLANT "x.completed(\"nothing\", {full})"
  RANKS 2 FOUND "embedding.position.weight, step 0")
gradus_planted_fault(bias_added_on_every_rank FILE model/mlp.cpp
  FIND "matmul_forward(x, a.down, a.gelu, w.down_w, {})"
       "residual_forward(x, out_part, a.down_part, w.down_b, mid_part,"
  PLANT "matmul_forward(x, a.down, a.gelu, w.down_w, w.down_b)"
        "residual_forward(x, out_part, a.down_part, {}, mid_part,"
  RANKS 2 FOUND "ln_f.weight, step 1")
gradus_planted_fault(embedding_without_offset FILE model/embedding_layer.cpp
  FIND "return tp.rank() * token.size(0)" PLANT "return 0 * tp.rank() * token.size(0)"
  RANKS 2 FOUND "embedding.token.weight, step 0")
gradus_planted_fault(targets_without_offset FILE model/head.cpp
  FIND "tp.rank() * sizes.V_tp, sizes.V)@semicolon@  // 4"
  PLANT "0 * tp.rank() * sizes.V_tp, sizes.V)@semicolon@  // 4"
  RANKS 2 FOUND "state.loss")
gradus_planted_fault(layernorm_gradients_not_summed FILE train/bucket_sync.cpp
  FIND "if (model_.parallel().tp.sequence_parallel())" PLANT "if (model_.parallel().tp.size() < 0)"
  RANKS 2 FOUND "block.0.ln1.weight, step 0")
gradus_planted_fault(replicas_counted_twice_in_the_norm FILE optim/optimizer.cpp
  FIND "(counts_replicas || !section.replicated)" PLANT "(counts_replicas || section.range.begin >= 0)"
  RANKS 2 FOUND "state.grad_norm")

# Data parallelism.
gradus_planted_fault(gradients_of_replicas_not_summed FILE parallel/data_parallel.cpp
  FIND "return group_->all_reduce(x, bucket.grad, bucket.grad)" PLANT "return Pending()"
  RANKS 2 FOUND "embedding.token.weight, step 0")
gradus_planted_fault(shards_of_gradients_not_summed FILE parallel/data_parallel.cpp
  FIND "return group_->reduce_scatter(x, shard, bucket.grad)"
  PLANT "x.completed(\"nothing\", {shard})@semicolon@ return Pending()"
  RANKS 2 FOUND "embedding.token.weight, step 0")
gradus_planted_fault(weights_not_gathered FILE parallel/data_parallel.cpp
  FIND "return group_->all_gather(x, bucket.value, shard)"
  PLANT "x.completed(\"nothing\", {shard})@semicolon@ return Pending()"
  RANKS 2 FILTER Layouts.ReplicasStayEqualToTheBit FOUND "embedding.token.weight")
gradus_planted_fault(masks_of_another_sample FILE train/step.cpp
  FIND "first_sample_ = first_sample + model_.parallel().dp.rank() * model_.tokens().size(0)"
  PLANT "first_sample_ = first_sample"
  RANKS 2 FOUND "state.loss")

# Pipelines.
gradus_planted_fault(tied_embedding_not_summed FILE parallel/pipeline_parallel.cpp
  FIND "embedding_->all_reduce(x, inout, inout).wait(x)" PLANT "x.completed(\"nothing\", {inout})"
  RANKS 2 FOUND "embedding.token.weight, step 0")
gradus_planted_fault(tied_embedding_counted_twice FILE optim/optimizer.cpp
  FIND "bucket.holding == Holding::owner &&" PLANT "bucket.holding != Holding::none &&"
  RANKS 2 FOUND "state.grad_norm")
gradus_planted_fault(another_slot FILE train/pipeline_schedule.cpp
  FIND "backward(m, m % slots)" PLANT "backward(m, (m + 1) % slots)"
  RANKS 2 FOUND "block.0.ln1.weight, step 0")
