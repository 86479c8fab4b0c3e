/* Run a molecule from its model file: ala2 MODEL.safetensors [STEPS] */
#include "diffusim.h"
#include <stdio.h>
#include <stdlib.h>

static void check(diffusim_status_t status) {
    if (status != DIFFUSIM_OK) {
        fprintf(stderr, "diffusim: %s\n", diffusim_last_error());
        exit(1);
    }
}

int main(int argc, char** argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s MODEL.safetensors [STEPS]\n", argv[0]);
        return 2;
    }
    diffusim_model_t* model;
    check(diffusim_model_load(argv[1], NULL, &model));

    diffusim_simulation_options_t options;
    check(diffusim_simulation_options_init(&options, sizeof options));
    options.temperature = 300.0;  /* K; the size of a step is the one the model recommends */
    options.friction_rate = 10.0; /* 1/ps */
    options.seed = 48291;
    diffusim_simulation_t* simulation;
    check(diffusim_simulation_create(model, &options, &simulation));
    check(diffusim_simulation_step(simulation, argc > 2 ? strtoull(argv[2], NULL, 10) : 100000));

    size_t n = 3 * diffusim_model_n_particles(model);
    double* positions = malloc(n * sizeof *positions); /* [n_particles][3], nm */
    check(diffusim_simulation_get_positions(simulation, positions, DIFFUSIM_FLOAT64, n));
    for (size_t i = 0; i < n; i += 3)
        printf("%.20f %.20f %.20f\n", positions[i], positions[i + 1], positions[i + 2]);

    free(positions);
    diffusim_simulation_free(simulation);
    diffusim_model_free(model);
    return 0;
}
