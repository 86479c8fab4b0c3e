#include "base64.h"
#include "openmm/OpenMMException.h"
#include <array>
#include <cstdint>

namespace diffusim_openmm {

namespace {
const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

std::array<int8_t, 256> values() {
    std::array<int8_t, 256> values;
    values.fill(-1);
    for (int i = 0; i < 64; i++)
        values[static_cast<unsigned char>(DIGITS[i])] = static_cast<int8_t>(i);
    return values;
}
} // namespace

std::string encodeBase64(const std::string& bytes) {
    std::string text;
    text.reserve((bytes.size() + 2) / 3 * 4);
    for (size_t i = 0; i < bytes.size(); i += 3) {
        uint32_t group = 0;
        for (size_t j = 0; j < 3; j++)
            group = group << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0);
        for (size_t j = 0; j < 4; j++)
            text += i + j <= bytes.size() ? DIGITS[group >> (18 - 6 * j) & 63] : '=';
    }
    return text;
}

std::string decodeBase64(const std::string& text) {
    static const std::array<int8_t, 256> VALUES = values();
    std::string bytes;
    bytes.reserve(text.size() / 4 * 3);
    uint32_t group = 0;
    int bits = 0;
    for (size_t i = 0; i < text.size() && text[i] != '='; i++) {
        const int value = VALUES[static_cast<unsigned char>(text[i])];
        if (value < 0)
            throw OpenMM::OpenMMException("the model embedded in the XML is damaged: character " + std::to_string(i) +
                                          " is not base64");
        group = (group << 6 | value) & 0xffffff;
        bits += 6;
        if (bits >= 8) {
            bits -= 8;
            bytes += static_cast<char>(group >> bits & 0xff);
        }
    }
    return bytes;
}

} // namespace diffusim_openmm
