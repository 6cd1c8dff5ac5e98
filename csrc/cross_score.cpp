// residual_cross_score: schema.
#include "checks.h"

STABLE_TORCH_LIBRARY_FRAGMENT(lirank, m) {
  m.def(
      "residual_cross_score(Tensor request, Tensor items, Tensor counts, Tensor[] low_rank, "
      "Tensor[] attention, float temperature, Tensor[] log_temperatures, int token_dim=1, "
      "bool skip=True, int merge=0, Tensor? weight=None, Tensor? bias=None) -> Tensor");
}
