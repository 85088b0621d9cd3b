from keras_coda.command_line import main

main()
