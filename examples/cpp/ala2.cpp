// Run a molecule from its model file: ala2 MODEL.safetensors [STEPS]
#include "diffusim.hpp"
#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) try {
    if (argc < 2) {
        std::fprintf(stderr, "usage: %s MODEL.safetensors [STEPS]\n", argv[0]);
        return 2;
    }
    const diffusim::model model = diffusim::model::load(argv[1]);

    diffusim::simulation_options options;
    options.temperature = 300.0;  // K; the size of a step is the one the model recommends
    options.friction_rate = 10.0; // 1/ps
    options.seed = 48291;
    diffusim::simulation simulation(model, options);
    simulation.step(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 100000);

    const std::vector<double> positions = simulation.positions(); // [n_particles][3], nm
    for (std::size_t i = 0; i < positions.size(); i += 3)
        std::printf("%.20f %.20f %.20f\n", positions[i], positions[i + 1], positions[i + 2]);
    return 0;
} catch (const diffusim::error& error) {
    std::fprintf(stderr, "diffusim: %s\n", error.what());
    return 1;
}
