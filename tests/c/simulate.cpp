// A simulation through diffusim.hpp: simulate FIXTURE.safetensors prints the bits of the final positions.
#include "diffusim.hpp"
#include <cstdio>
#include <cstring>

int main(int, char** argv) try {
    diffusim::check_abi();
    if (diffusim::describe_device("cpu").rfind("cpu: ", 0) != 0)
        return 5;
    diffusim::simulation_options options;
    options.effective_step = 2.3e-7;
    options.allow_unstable = 1;
    options.seed = 991;
    options.n_replicas = 2;
    diffusim::simulation simulation(diffusim::model::load(argv[1]), options);
    diffusim::sample_options sampling;
    sampling.n_steps = 3;
    if (diffusim::model::load(argv[1]).sample(2, sampling).size() != 30)
        return 2;
    const diffusim::model network = diffusim::model::load(argv[1]);
    diffusim::simulation blend(diffusim::model::blend(network, network, 0.37), options);
    blend.set_lambda(0.7);
    blend.step(3);
    const std::vector<double> energies = blend.component_energies(); // [2][2], both models are the same
    if (blend.lambda() != 0.7 || energies.size() != 4 || energies[2] != energies[3])
        return 6;
    simulation.step(200);
    const std::vector<unsigned char> checkpoint = simulation.checkpoint();
    simulation.step(17);
    simulation.restore(checkpoint);
    simulation.step_biased(std::vector<double>(30, 0.0));
    simulation.step(99);
    diffusim::simulation_options inertial;
    inertial.adapter = DIFFUSIM_LANGEVIN;
    inertial.friction_rate = 11.0;
    inertial.time_step = 0.0003;
    inertial.allow_unstable = 1;
    diffusim::simulation langevin(diffusim::model::load(argv[1]), inertial);
    langevin.draw_velocities();
    langevin.set_velocities(langevin.velocities());
    langevin.step(3);
    if (!(langevin.statistics().kinetic_energy > 0.0) || langevin.step_factors() != std::vector<double>{1.0})
        return 6;
    try {
        simulation.set_positions({0.5});
        return 3;
    } catch (const diffusim::error& error) {
        if (error.status() != DIFFUSIM_ERROR_INVALID_ARGUMENT ||
            std::strstr(error.what(), "expected 2 replicas") == nullptr)
            return 4;
    }
    for (double x : simulation.positions()) {
        unsigned long long bits;
        std::memcpy(&bits, &x, sizeof bits);
        std::printf("%llx\n", bits);
    }
    return 0;
} catch (const std::exception& exception) {
    std::fprintf(stderr, "%s\n", exception.what());
    return 1;
}
