#include "model/model.h"

namespace dg {

ForwardResult Model::mtp_forward(Ctx&, const Batch&, Tensor) {
  CHECK(false) << "this model has no MTP module";
  return {};
}

}  // namespace dg
