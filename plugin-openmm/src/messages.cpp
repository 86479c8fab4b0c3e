#include "messages.h"
#include <atomic>
#include <sstream>

namespace diffusim_openmm {

namespace {
std::atomic<MessageHandler> handler{nullptr};

void send(int warning, const std::string& message) {
    if (MessageHandler receive = handler)
        receive(warning, message.c_str());
}
} // namespace

void setMessageHandler(MessageHandler receive) { handler = receive; }
void inform(const std::string& message) { send(0, message); }
void warn(const std::string& message) { send(1, message); }

std::string shortText(double value) {
    std::ostringstream text;
    text << value;
    return text.str();
}

} // namespace diffusim_openmm
