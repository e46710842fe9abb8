// griddepcontrol: a kernel may start while the one launched before it still runs (programmatic dependent launch).
//
// Launches are simulated one after the other all the same. That a dependent one overlaps the one before it is a matter
// of what it may touch: until one of its threads has waited, what the kernel before wrote is taken not to be there, and
// what it may still read or write is not to be written (global_memory.cpp). Two rules keep that to one kernel: a block
// lets the next kernel start only once it has itself waited, so that no more than two overlap, and no block ends
// without a wait, as the next kernel's wait is for the end of this one alone.
#include "sim/instructions.h"
#include "sim/machine.h"

namespace vggfast::sim {

bool is_after_predecessors() {
  Thread& me = self();
  if (!machine.launch.dependent || me.after_predecessors) return true;
  for (const Moment wait : machine.predecessors_ended) {
    if (me.after(wait)) return me.after_predecessors = true;
  }
  return false;
}

void check_has_waited(const Block& block) {
  if (!machine.launch.dependent || block.has_waited) return;
  stop(
      std::string("sim: kernel ") + machine.launch.kernel + ", " + name_of(self()) +
      ": the block ends, and none of its threads has come to griddepcontrol.wait: the next kernel waits for the end of "
      "this one, and then would not wait for those before");
}

void griddepcontrol_wait() {
  const Quiet quiet;
  Thread& me = self();
  me.block->has_waited = true;
  if (me.after_predecessors || !machine.launch.dependent) return;
  tick(me);
  me.after_predecessors = true;
  machine.predecessors_ended.push_back({me.now(), me.index});
}

void griddepcontrol_launch_dependents() {
  const void* site = SIM_SITE;
  const Quiet quiet;
  if (!is_after_predecessors()) {
    fault(site,
          "griddepcontrol.launch_dependents before griddepcontrol.wait: the next kernel could start before those ",
          "before this one have ended");
  }
  self().block->launches_dependents = true;
}

}  // namespace vggfast::sim
