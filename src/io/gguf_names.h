// From the tensors of a GGUF file to the names, shapes and row order of the Hugging Face checkpoint that it was made from,
// so that the model floor needs one set of names. Conventions: convert_hf_to_gguf.py and gguf-py of llama.cpp, as written
// down in ../spec quant_formats section 9.3.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "io/gguf.h"
#include "io/tensor_info.h"

namespace dg {

// All tensors of the model in order of their files and offsets. One expert tensor (in, out, experts) becomes `experts`
// matrices; rows that were permuted for ggml's rope get rotary_rows; attn_k_b with attn_v_b become kv_b_proj. Tensors
// without a counterpart keep their name. Errors name file and tensor.
Result<std::vector<TensorInfo>> gguf_tensor_infos(const GgufModel& model);

// Hugging Face's name of a tensor ("blk.3.attn_q.weight" -> "model.layers.3.self_attn.q_proj.weight") and back. Expert
// tensors and the halves of kv_b are not covered: they are not one to one. Nothing when there is no counterpart.
std::optional<std::string> gguf_to_hf_name(std::string_view name);
std::optional<std::string> hf_to_gguf_name(std::string_view name);

}  // namespace dg
