# Faults planted into parallel training, each of which the layouts test must find: a test that cannot fail
# proves nothing. A mutant is the program of train.layouts, whose objects are compiled once, linked with one
# source file of src/ in which one thing was changed. It comes before the libraries, so that the linker
# takes it instead of the archive's member of that name; were a symbol missing from it, the linker would
# take both and refuse.

# gradus_planted_fault(NAME FILE source FIND text… PLANT text… RANKS n FOUND regex [FILTER test])
# Replaces each FIND by its PLANT. Configuring fails unless FIND is in the file exactly once, so a fault
# cannot go stale in silence. FOUND: what the failing expectation prints (planted_fault_test.cmake).
function(gradus_planted_fault name)
  cmake_parse_arguments(ARG "" "FILE;RANKS;FOUND;FILTER" "FIND;PLANT" ${ARGN})
  if(NOT ARG_FILTER)
    set(ARG_FILTER Layouts.GradientsNormsAndLossCurvesAreThoseOfOneRank)
  endif()
  set(source "${PROJECT_SOURCE_DIR}/src/${ARG_FILE}")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${source}")
  file(READ "${source}" text)
  foreach(find plant IN ZIP_LISTS ARG_FIND ARG_PLANT)
    string(FIND "${text}" "${find}" first)
    string(FIND "${text}" "${find}" last REVERSE)
    if(first EQUAL -1 OR NOT first EQUAL last)
      message(FATAL_ERROR "planted fault ${name}: src/${ARG_FILE} has not exactly one\n  ${find}\n"
                          "Plant the fault where that code has gone (tests/train/planted_faults.cmake).")
    endif()
    string(REPLACE "${find}" "${plant}" text "${text}")
  endforeach()
  get_filename_component(file_name "${ARG_FILE}" NAME)
  set(mutant "${CMAKE_CURRENT_BINARY_DIR}/planted_faults/${name}/${file_name}")
  file(CONFIGURE OUTPUT "${mutant}" CONTENT "${text}" @ONLY)  # written only when it changes

  set(target "planted_fault_${name}")
  add_executable(${target} "${mutant}" $<TARGET_OBJECTS:train_layouts_test>)
  target_link_libraries(${target} PRIVATE gradus_options gradus_test_support gradus_parallel gradus_train
                                          GTest::gtest GTest::gmock)
  set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY
                                             "${CMAKE_BINARY_DIR}/tests/planted_faults")
  add_test(NAME train.planted_fault.${name}
           COMMAND ${CMAKE_COMMAND} -DPROGRAM=$<TARGET_FILE:${target}> -DMPIRUN=${MPIEXEC_EXECUTABLE}
                   -DRANKS=${ARG_RANKS} -DFILTER=${ARG_FILTER} "-DFOUND=${ARG_FOUND}"
                   -P ${CMAKE_CURRENT_SOURCE_DIR}/planted_fault_test.cmake)
  set_tests_properties(train.planted_fault.${name} PROPERTIES
    TIMEOUT 150 PROCESSORS ${ARG_RANKS} ENVIRONMENT "${GRADUS_MPI_TEST_ENVIRONMENT}")
endfunction()

# Tensor parallelism: f, g, and the same under sequence parallelism.
gradus_planted_fault(input_gradient_not_summed FILE parallel/tensor_parallel.cpp
  FIND "return group_->all_reduce(x, dfull, dfull)" PLANT "return Pending()"
  RANKS 2 FOUND "block.0.ln1.weight, step 0")
gradus_planted_fault(row_parallel_output_not_summed FILE parallel/tensor_parallel.cpp
  FIND "group_->all_reduce(x, full, full).wait(x)" PLANT "x.completed(\"nothing\", {full})"
  RANKS 2 FOUND "difference between state.loss")
gradus_planted_fault(input_gradient_not_scattered FILE parallel/tensor_parallel.cpp
  FIND "return group_->reduce_scatter(x, sequence(dpart, last), sequence(dfull, last))"
  PLANT "return (x.completed(\"nothing\", {dpart}), Pending())"
  RANKS 2 FOUND "block.0.ln1.weight, step 0")
gradus_planted_fault(row_parallel_output_not_scattered FILE parallel/tensor_parallel.cpp
  FIND "group_->reduce_scatter(x, sequence(part, b), sequence(full, b)).wait(x)"
  PLANT "x.completed(\"nothing\", {part, full})"
  RANKS 2 FOUND "difference between state.loss")
gradus_planted_fault(layernorm_gradients_not_summed FILE train/bucket_sync.cpp
  FIND "if (model_.parallel().tp.sequence_parallel())" PLANT "if (model_.parallel().tp.size() < 0)"
  RANKS 2 FOUND "block.0.ln1.weight, step 0")

# The bias behind a row-parallel product, before the sum over ranks. Biases are zero until step 1.
gradus_planted_fault(bias_added_on_every_rank FILE model/mlp.cpp
  FIND "matmul_forward(x, a.down, a.gelu, w.down_w, {})"
       "residual_forward(x, out_part, a.down_part, w.down_b, mid_part,"
  PLANT "matmul_forward(x, a.down, a.gelu, w.down_w, w.down_b)"
        "residual_forward(x, out_part, a.down_part, {}, mid_part,"
  RANKS 2 FOUND "difference between state.loss")

# The vocabulary's offset: of the rows that a rank looks up, and of the targets among its logits.
gradus_planted_fault(embedding_without_offset FILE model/embedding_layer.cpp
  FIND "return tp.rank() * token.size(0)" PLANT "return 0 * tp.rank() * token.size(0)"
  RANKS 2 FOUND "embedding.token.weight, step 0")
gradus_planted_fault(targets_without_offset FILE model/head.cpp
  FIND "tp.rank() * sizes.V_tp, sizes.V)" PLANT "0 * tp.rank() * sizes.V_tp, sizes.V)"
  RANKS 2 FOUND "difference between state.loss")
gradus_planted_fault(target_gradients_without_offset FILE model/head.cpp
  FIND "tp.rank() * sizes.V_tp, sizes.V,\n" PLANT "0 * tp.rank() * sizes.V_tp, sizes.V,\n"
  RANKS 2 FOUND "ln_f.weight, step 0")

# The norm: what ranks of tp, replicas and stages have of it; what several have counts once.
gradus_planted_fault(replicas_counted_twice_in_the_norm FILE optim/optimizer.cpp
  FIND "(counts_replicas || !section.replicated)" PLANT "(counts_replicas || section.range.begin >= 0)"
  RANKS 2 FOUND "difference between state.grad_norm")
gradus_planted_fault(norm_not_summed_over_ranks FILE optim/optimizer.cpp
  FIND "parallel_->tp.all_reduce(x, partials_)" PLANT "x.completed(\"nothing\", {partials_})"
  RANKS 2 FOUND "difference between state.grad_norm")
gradus_planted_fault(norm_not_summed_over_shards FILE optim/optimizer.cpp
  FIND "parallel_->dp.all_reduce(x, partials_)" PLANT "x.completed(\"nothing\", {partials_})"
  RANKS 2 FOUND "difference between state.grad_norm")
gradus_planted_fault(norm_not_summed_over_stages FILE optim/optimizer.cpp
  FIND "parallel_->pp.gather(x, stage_sums_)" PLANT "x.completed(\"nothing\", {stage_sums_})"
  RANKS 2 FOUND "difference between state.grad_norm")
gradus_planted_fault(tied_embedding_counted_twice FILE optim/optimizer.cpp
  FIND "bucket.holding == Holding::owner &&" PLANT "bucket.holding != Holding::none &&"
  RANKS 2 FOUND "difference between state.grad_norm")

# Data parallelism: ZeRO-0's sum, that of shards, the weights that other replicas updated, and which
# samples a replica has.
gradus_planted_fault(gradients_of_replicas_not_summed FILE parallel/data_parallel.cpp
  FIND "return group_->all_reduce(x, bucket.grad, bucket.grad)" PLANT "return Pending()"
  RANKS 2 FOUND "embedding.token.weight, step 0")
gradus_planted_fault(shards_of_gradients_not_summed FILE parallel/data_parallel.cpp
  FIND "return group_->reduce_scatter(x, shard, bucket.grad)"
  PLANT "return (x.completed(\"nothing\", {shard}), Pending())"
  RANKS 2 FOUND "embedding.token.weight, step 0")
gradus_planted_fault(weights_not_gathered FILE parallel/data_parallel.cpp
  FIND "return group_->all_gather(x, bucket.value, shard)"
  PLANT "return (x.completed(\"nothing\", {shard}), Pending())"
  RANKS 2 FILTER Layouts.ReplicasStayEqualToTheBit FOUND "first_of.tiny.x, part.mesh.dp")
gradus_planted_fault(masks_of_another_sample FILE train/step.cpp
  FIND "first_sample_ = first_sample + model_.parallel().dp.rank() * model_.tokens().size(0)"
  PLANT "first_sample_ = first_sample"
  RANKS 2 FOUND "difference between state.loss")

# Pipelines.
gradus_planted_fault(tied_embedding_not_summed FILE parallel/pipeline_parallel.cpp
  FIND "embedding_->all_reduce(x, inout, inout).wait(x)" PLANT "x.completed(\"nothing\", {inout})"
  RANKS 2 FOUND "embedding.token.weight, step 0")
gradus_planted_fault(another_slot FILE train/pipeline_schedule.cpp
  FIND "backward(m, m % slots)" PLANT "backward(m, (m + 1) % slots)"
  RANKS 2 FOUND "block.0.ln1.weight, step 0")
