# Faults planted into parallel training, each of which the layouts test must find: a test that cannot fail
# proves nothing. A mutant is that test's program, whose objects are compiled once, linked with one
# source file of src/ in which one thing was changed. It comes before the libraries, so that the linker
# takes it instead of the archive's member of that name; were a symbol missing from it, the linker would
# take both and refuse.

# gradus_planted_fault(NAME FILE source FIND text… PLANT text… RANKS n FOUND regex [FILTER test]
# [LATE] [TEST program])
# Replaces each FIND by its PLANT. Configuring fails unless FIND is in the file exactly once, so a fault
# cannot go stale in silence. FOUND: what the failing expectation prints (planted_fault_test.cmake).
# TEST: the program whose objects are linked, train_layouts_test if it is not said. LATE: results come as late as they may (BootstrapOptions::late), so that a wait left out shows.
function(gradus_planted_fault name)
  cmake_parse_arguments(ARG "LATE" "FILE;RANKS;FOUND;FILTER;TEST" "FIND;PLANT" ${ARGN})
  if(NOT ARG_FILTER)
    set(ARG_FILTER Layouts.GradientsNormsAndLossCurvesAreThoseOfOneRank)
  endif()
  if(NOT ARG_TEST)
    set(ARG_TEST train_layouts_test)
  endif()
  set(argument "")
  if(ARG_LATE)
    set(argument --late=1)
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
  add_executable(${target} "${mutant}" $<TARGET_OBJECTS:${ARG_TEST}>)
  target_link_libraries(${target} PRIVATE gradus_options gradus_test_support gradus_parallel gradus_train
                                          GTest::gtest GTest::gmock)
  set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY
                                             "${CMAKE_BINARY_DIR}/tests/planted_faults")
  add_test(NAME train.planted_fault.${name}
           COMMAND ${CMAKE_COMMAND} -DPROGRAM=$<TARGET_FILE:${target}> -DMPIRUN=${MPIEXEC_EXECUTABLE}
                   -DRANKS=${ARG_RANKS} -DFILTER=${ARG_FILTER} -DARGUMENT=${argument} "-DFOUND=${ARG_FOUND}"
                   -P ${CMAKE_CURRENT_SOURCE_DIR}/planted_fault_test.cmake)
  set_tests_properties(train.planted_fault.${name} PROPERTIES
    TIMEOUT 150 PROCESSORS ${ARG_RANKS} ENVIRONMENT "${GRADUS_MPI_TEST_ENVIRONMENT}")
endfunction()

# Tensor parallelism: f, g, and the same under sequence parallelism.
gradus_planted_fault(input_gradient_not_summed FILE parallel/tensor_parallel.cpp
  FIND "pending.add(x, group_->all_reduce(x, dfull, dfull))" PLANT "return pending"
  RANKS 2 FOUND "block.0.ln1.weight, step 0")
gradus_planted_fault(row_parallel_output_not_summed FILE parallel/tensor_parallel.cpp
  FIND "group_->all_reduce(x, full, full).wait(x)" PLANT "x.completed(\"nothing\", {full})"
  RANKS 2 FOUND "difference between state.loss")
gradus_planted_fault(input_gradient_not_scattered FILE parallel/tensor_parallel.cpp
  FIND "pending.add(x, group_->reduce_scatter(x, sequence(dpart, b), sequence(dfull, b)))"
  PLANT "x.completed(\"nothing\", {dpart})"
  RANKS 2 FOUND "block.0.ln1.weight, step 0")
gradus_planted_fault(row_parallel_output_not_scattered FILE parallel/tensor_parallel.cpp
  FIND "pending.add(x, group_->reduce_scatter(x, sequence(part, b), sequence(full, b)))"
  PLANT "x.completed(\"nothing\", {part, full})"
  RANKS 2 FOUND "difference between state.loss")
gradus_planted_fault(layernorm_gradients_not_summed FILE train/bucket_sync.cpp
  FIND "if (model_.parallel().tp.size() > 1)" PLANT "if (model_.parallel().tp.size() < 0)"
  RANKS 2 FOUND "block.0.ln1.weight, step 0")

gradus_planted_fault(uncut_gradients_not_agreed_on FILE train/bucket_sync.cpp
  FIND "tp.broadcast(x(), grad)" PLANT "x().completed(\"nothing\", {grad})"
  FILTER Layouts.TensorParallelRanksWithDifferentThreadsStayEqualToTheBit
  RANKS 2 FOUND "equal over tp: block.0.ln1.weight")

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

# Waits left out.
gradus_planted_fault(attention_input_gradient_not_awaited FILE model/attention_layer.cpp
  FIND "  pending.wait(x)" PLANT "  if (x.threads() < 0) pending.wait(x)" LATE
  RANKS 2 FOUND "block.0.ln1.weight, step 0")
gradus_planted_fault(mlp_input_gradient_not_awaited FILE model/mlp.cpp
  FIND "  pending.wait(x)" PLANT "  if (x.threads() < 0) pending.wait(x)" LATE
  RANKS 2 FOUND "block.0.ln2.weight, step 0")
gradus_planted_fault(gradients_not_awaited FILE train/bucket_sync.cpp
  FIND "gradients_[index].wait(x())" PLANT "if (index == SIZE_MAX) gradients_[index].wait(x())"
  LATE RANKS 2 FOUND "embedding.token.weight, step 0")
gradus_planted_fault(gradient_buffer_not_awaited FILE train/bucket_sync.cpp
  FIND "bucket(other).grad.data() == grad.data()" PLANT "bucket(other).grad.data() == nullptr"
  LATE RANKS 2 FOUND "block\\.[0-9]\\.[a-z0-9_.]+, step 0")
gradus_planted_fault(weights_not_awaited FILE train/bucket_sync.cpp
  FIND "{ weights_[at(index)].wait(x())" PLANT "{ if (index < 0) weights_[at(index)].wait(x())"
  LATE RANKS 2 FOUND "difference between state.loss")

# `gradus verify` finds faults too, and names the tensor.
gradus_planted_fault(verify_input_gradient_not_summed FILE parallel/tensor_parallel.cpp
  FIND "pending.add(x, group_->all_reduce(x, dfull, dfull))" PLANT "return pending"
  TEST train_verify_test FILTER Verify.EveryCheckPasses
  RANKS 2 FOUND "tp 2 against one rank, fp64: [0-9.e+-]+ at block")
gradus_planted_fault(verify_weights_not_gathered FILE parallel/data_parallel.cpp
  FIND "return group_->all_gather(x, bucket.value, shard)"
  PLANT "return (x.completed(\"nothing\", {shard}), Pending())"
  TEST train_verify_test FILTER Verify.EveryCheckPasses
  RANKS 2 FOUND "pp 1 dp 2 tp 1 zero 1 after an update, fp64: [0-9.e+-]+ at ")
gradus_planted_fault(verify_moments_not_loaded FILE train/run_checkpoint.cpp
  FIND "moments.push_back(destination(moment, model, spec))"
  PLANT "moments.push_back({moment.prefix + spec.name, spec.shape, {}})"
  TEST train_verify_test FILTER Verify.EveryCheckPasses
  RANKS 2 FOUND "pp 1 dp 1 tp 2 resumed against straight on: 1 at ")
