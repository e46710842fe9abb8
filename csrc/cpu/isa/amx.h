// Whether the tile instructions of AMX may be used here.
#pragma once

namespace vggfast::cpu {

enum class Amx { none, no_state, denied, permitted };

/// What the processor, the operating system's registers and its permission allow. The first call asks for the
/// permission, which the process and its threads then have for good.
Amx find_amx();
/// The same with what the processor has and the operating system saves given; asks for the permission in each call.
Amx find_amx(bool processor, bool state);
/// What `vggfast info` says of it.
const char* describe(Amx amx);

}  // namespace vggfast::cpu
